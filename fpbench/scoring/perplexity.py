"""Perplexity over the windows of a long text (protocol §5) and of many short texts (protocol §6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum
from typing import Any

from fpbench.errors import CellError, InputError
from fpbench.models.layout import context_length
from fpbench.scoring.engine import log_likelihoods
from fpbench.text import short_digest


@dataclass(frozen=True)
class TokenPerplexity:
    """Perplexity of a text per token.

    Attributes:
        perplexity: exp(Σ NLL / predicted).
        length: tokens of a window; figures of different length are not comparable.
        predicted: number of predicted tokens, windows · (length − 1).
        losses: Σ −log p of every window (nats).
        tokens: short SHA-256 of the token ids in the windows; figures of other tokens are not comparable either.
    """

    perplexity: float
    length: int
    windows: int
    predicted: int
    losses: tuple[float, ...]
    tokens: str


def token_perplexity(
    model: Any, tokenizer: Any, text: str, length: int = 2048, first: int | None = None
) -> TokenPerplexity:
    """Measure perplexity over disjoint windows of min(length, context) tokens, after Wanda (docs/methods.md §5.1).

    The text is tokenised at once as the tokenizer does by itself, cut into whole windows, the rest dropped; each window
    is fed alone and predicts its tokens 2 … L. Only the ``first`` windows are read, if that is given.

    Raises:
        InputError: if ``length`` is below 2 or the text shorter than a window.
        CellError: if the perplexity is not finite.
    """
    length = min(length, context_length(model) or length)
    ids = tokenizer(text, verbose=False)["input_ids"]
    windows = len(ids) // length if length >= 2 else 0
    windows = min(windows, first or windows)
    if not windows:
        raise InputError(f"perplexity needs a window of 2 or more tokens, found {len(ids)} for a window of {length}.")
    losses = _losses(model, [ids[start * length : (start + 1) * length] for start in range(windows)])
    predicted = windows * (length - 1)
    tokens = short_digest(repr(ids[: windows * length]))
    return TokenPerplexity(_perplexity(sum(losses), predicted), length, windows, predicted, tuple(losses), tokens)


def text_perplexities(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Measure every text: one BOS, or the end-of-text token where there is none, and every token after it scored.

    A text longer than the context is scored in consecutive pieces, each after a start token of its own.

    Raises:
        InputError: if a text has no tokens, or the tokenizer neither BOS nor end-of-text token.
        CellError: if a perplexity is not finite.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("perplexity of a text needs a BOS or end-of-text token before it; the tokenizer has neither.")
    limit = context_length(model)
    pieces: list[tuple[int, list[int]]] = []  # each with the number of its text
    counts: list[int] = []
    for index, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise InputError(f"text {index} has no tokens, so no perplexity: leave out empty texts.")
        room = limit - 1 if limit is not None else len(ids)
        counts.append(len(ids))
        pieces += [(index, [start, *ids[first : first + room]]) for first in range(0, len(ids), room)]
    totals = [0.0] * len(texts)
    for (index, _), loss in zip(pieces, _losses(model, [ids for _, ids in pieces]), strict=True):
        totals[index] += loss
    return [_perplexity(total, count) for total, count in zip(totals, counts, strict=True)]


def _losses(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return Σ −log p of the tokens 2 … L of every sequence, in nats, summed in float64."""
    scored = log_likelihoods(model, sequences, [len(sequence) - 1 for sequence in sequences])
    return [-fsum(figures) for figures, _ in scored]


def _perplexity(loss: float, tokens: int) -> float:
    mean = loss / tokens
    # exp overflows at 710, and nothing a working model says comes near it.
    if not mean < 700:
        raise CellError(f"mean loss is {mean}: the model gives no usable probabilities, its weights are broken.")
    return exp(mean)
