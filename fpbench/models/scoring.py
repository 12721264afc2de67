"""One engine for "many prompts, few bits of answer": next-token logits of many prompts and continuations of them."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fpbench.errors import CellError, InputError

_budget: ContextVar[int] = ContextVar("token_budget", default=4096)
# Logits held at once: 128 MiB in float32, whatever the vocabulary.
LOGIT_BUDGET = 2**25


def token_budget() -> int:
    """Padded tokens of one forward pass."""
    return _budget.get()


@contextlib.contextmanager
def limited_to(tokens: int) -> Iterator[None]:
    """Change the token budget for everything that is scored inside.

    Raises:
        InputError: if it is not positive.
    """
    if tokens < 1:
        raise InputError(f"the token budget must be at least 1, found {tokens}.")
    before = _budget.set(tokens)
    try:
        yield
    finally:
        _budget.reset(before)


@dataclass(frozen=True)
class Decoding:
    """How a response is sampled; all three numbers are always given (protocol §2).

    Attributes:
        temperature: above 0.
        top_p: in (0, 1]; 1 keeps everything.
        top_k: at least 0; 0 keeps everything.
    """

    temperature: float
    top_p: float
    top_k: int

    def __post_init__(self) -> None:
        """Refuse numbers outside their range.

        Raises:
            InputError: naming the number.
        """
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, found {self.temperature}: greedy decoding is always shown.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, found {self.top_p}: give 1.0 to keep everything.")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, found {self.top_k}: give 0 to keep everything.")


def sampling_distribution(logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """The probabilities that ``generate`` samples the next token from.

    The library's own warpers in its own order (temperature, top-k, top-p), so that ties and edge rules are its own.

    Args:
        logits: [n, V] float32.
        decoding: the three numbers.

    Returns:
        [n, V] float32, zero outside the support.
    """
    unused: Any = None
    scores = logits
    if decoding.temperature != 1:
        scores = TemperatureLogitsWarper(float(decoding.temperature))(unused, scores)
    if decoding.top_k:
        scores = TopKLogitsWarper(decoding.top_k)(unused, scores)
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(unused, scores)
    return torch.softmax(scores, dim=-1)


def context_length(model: Any) -> int | None:
    """Positions the model was made for; ``None`` if its config names no limit."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def packed(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Group sequences of like length into batches, the longest first.

    Args:
        lengths: tokens of each sequence.
        tokens: padded tokens of a batch; a longer sequence gets a batch of its own.
        rows: sequences of a batch, at most.

    Yields:
        Indices into ``lengths``; every index once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, min(rows, tokens // max(1, lengths[order[start]])))
        yield order[start : start + size]
        start += size


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts that a model has read, with the keys and values to go on from.

    Attributes:
        model: the model.
        indices: which of the sequences handed in, row by row.
        logits: of the next token, [rows, V] float32.
        mask: 1 where a row holds a token, [rows, width], padded on the left.
        cache: keys and values of the batch.
    """

    model: Any
    indices: list[int]
    logits: torch.Tensor
    mask: torch.Tensor
    cache: Any

    def extend(
        self, rows: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Logits of the token after each continuation, reading only the continuation.

        Args:
            rows: for every continuation the prompt it goes on from.
            continuations: token sequences, all of one length.

        Yields:
            ``(span, logits)``: which continuations, and their logits [len(span), V] float32.

        Raises:
            CellError: if a logit is not a number or +inf.
        """
        width = self.mask.shape[1] + len(continuations[0])
        # The prompts' positions count, too: their keys and values are copied for every continuation.
        size = max(1, min(token_budget() // width, LOGIT_BUDGET // self.logits.shape[1]))
        for start in range(0, len(rows), size):
            span = range(start, min(start + size, len(rows)))
            chosen = torch.tensor([rows[each] for each in span], device=self.mask.device)
            ids = torch.tensor([list(continuations[each]) for each in span], device=self.mask.device)
            mask = torch.cat([self.mask[chosen], torch.ones_like(ids)], dim=1)
            # Layers replace their tensors and never write into them, so a shallow copy leaves the prompts' own alone.
            cache = copy.copy(self.cache)
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            cache.batch_select_indices(chosen)
            yield span, _forward(self.model, ids, mask, cache)[0]


def read_prompts(model: Any, sequences: Sequence[Sequence[int]]) -> Iterator[Prompts]:
    """Read many prompts in batches of like length, so that a vocabulary of 128k never fills the memory.

    Args:
        model: a causal language model in eval mode.
        sequences: non-empty token sequences of any length up to the model's context.

    Yields:
        Batches; every sequence is in one of them.

    Raises:
        InputError: before the first pass, if a sequence is empty or exceeds the context, or the model is training.
        CellError: if a logit is not a number or +inf.
    """
    _check(model, sequences)
    rows = max(1, LOGIT_BUDGET // model.config.get_text_config().vocab_size)
    for indices in packed([len(sequence) for sequence in sequences], token_budget(), rows):
        # Left padding puts every last token in the last column, the only one whose logits are computed.
        width = len(sequences[indices[0]])
        ids = torch.zeros(len(indices), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            ids[row, width - len(sequences[index]) :] = torch.tensor(sequences[index])
            mask[row, width - len(sequences[index]) :] = 1
        mask = mask.to(model.device)
        logits, cache = _forward(model, ids.to(model.device), mask, None)
        yield Prompts(model, indices, logits, mask, cache)


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Read ``ids`` [n, t] after what ``cache`` holds; ``mask`` [n, cached + t] covers both."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits = output.logits[:, -1].float()
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise CellError("the model gives logits that are not finite numbers: its weights are broken.")
    return logits, output.past_key_values


def _check(model: Any, sequences: Sequence[Sequence[int]]) -> None:
    if model.training:
        raise InputError("the model is in training mode, where dropout falsifies its answers: call model.eval() first.")
    limit = context_length(model)
    for sequence in sequences:
        if not sequence:
            raise InputError("a prompt has no tokens: expected some text, or a tokenizer that adds a BOS.")
        if limit is not None and len(sequence) > limit:
            raise InputError(f"a prompt takes {len(sequence)} tokens, the model's context holds {limit}: shorten it.")
