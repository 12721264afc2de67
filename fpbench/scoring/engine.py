"""One engine for all scores: what prompts share is read once, and only the logits asked for are computed."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.nn.functional import cross_entropy

from fpbench.errors import InputError
from fpbench.models.layout import context_length
from fpbench.scoring.forward import Level, read_apart, read_trees
from fpbench.scoring.packing import TokenIds, apart, batches, rows_of

Result = TypeVar("Result")
_sharing: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_budget: ContextVar[int] = ContextVar("token_budget", default=4096)
_used: ContextVar[list[int] | None] = ContextVar("used_budgets", default=None)
# Logits held at once, unless one row asks for more: 512 MiB in float32, whatever the vocabulary.
LOGIT_BUDGET = 2**27
# How much faster a processor with bfloat16 products multiplies in bfloat16 than in float32.
BFLOAT16_GAIN = 4
# What configs call the reach of local attention, which some models count by places in memory.
WINDOW = re.compile(r"window(?:_size|_length)?$|^local_attention$|(?:chunk|block)_size$")
LONGEST_TRIED = 1024  # places; models with a longer window are read whole
logger = logging.getLogger(__name__)


def token_budget() -> int:
    """Return how many padded tokens one forward pass may take."""
    return _budget.get()


@contextlib.contextmanager
def limited_to(tokens: int | None) -> Iterator[None]:
    """Change the token budget for everything that is scored inside; ``None`` leaves it as it is.

    Raises:
        InputError: if it is not positive.
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"the token budget must be at least 1, found {tokens}.")
    before = _budget.set(_budget.get() if tokens is None else tokens)
    try:
        yield
    finally:
        _budget.reset(before)


@contextlib.contextmanager
def budgets_used() -> Iterator[list[int]]:
    """Yield a list that receives every token budget used inside: one, unless memory ran out."""
    used: list[int] = []
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)


def _note(budget: int) -> int:
    if (used := _used.get()) is not None and budget not in used:
        used.append(budget)
    return budget


def read(
    model: Any,
    sequences: Sequence[TokenIds],
    wanted: Sequence[int],
    work: Callable[[Level], dict[int, Result]],
    *,
    ahead: int = 0,
) -> list[Result]:
    """Read sequences batch by batch and return a result for each, in their order, from the model's predictions.

    Beginnings that sequences share are read once, by models that can (:func:`shares_prefixes`); rows are packed by
    length into batches within the token budget. A batch that does not fit the memory is tried again in halves.

    Args:
        model: a causal language model in eval mode.
        sequences: token ids, none empty, none longer than the model's context less ``ahead``.
        wanted: for every sequence after how many of its last tokens the prediction is asked for, at least 1.
        work: takes the predictions of a batch; returns a result for the number of every sequence in it.
        ahead: tokens by which ``work`` may extend a sequence.

    Raises:
        InputError: before the first pass, if a sequence is empty or exceeds the context, or the model is training.
        CellError: if a logit is not a number or +inf.
    """
    _check(model, sequences, ahead)
    sharing = shares_prefixes(model)
    open_rows = read_trees if sharing else read_apart
    if not sharing:
        logger.warning("%s cannot share prefixes: every prompt is read whole.", type(model).__name__)
    budget = _note(token_budget())
    limit = max(1, LOGIT_BUDGET // model.config.get_text_config().vocab_size)
    results: dict[int, Result] = {}
    while len(results) < len(sequences):
        left = {number: sequence for number, sequence in enumerate(sequences) if number not in results}
        rows = rows_of(left, wanted, budget, pair_cost(model)) if sharing else apart(left, wanted)
        for batch in batches(rows, budget, limit):
            try:
                results |= work(open_rows(model, batch, budget))
            except RuntimeError as error:
                if sum(len(row.places) for row in batch) == 1 or not should_reduce_batch_size(error):
                    raise
                budget = _note(max(1, min(budget, sum(len(row.tokens) for row in batch)) // 2))
                logger.warning("out of memory: the token budget is %d now.", budget)
                break
    return [results[number] for number in range(len(sequences))]


def next_logits(model: Any, sequences: Sequence[TokenIds]) -> Tensor:
    """Return the logits of the token after each of n sequences, [n, V] float32 on the model's device.

    Raises:
        InputError, CellError: as :func:`read`.
    """
    size = model.get_output_embeddings().weight.shape[0]
    logits = torch.empty(len(sequences), size, device=model.device)

    def work(level: Level) -> dict[int, None]:
        numbers = list(level.nodes)
        nodes = [node for number in numbers for node in level.nodes[number]]
        logits[numbers] = level.logits[nodes].float()
        return dict.fromkeys(numbers)

    read(model, sequences, [1] * len(sequences), work)
    return logits


def log_likelihoods(model: Any, sequences: Sequence[TokenIds], scored: Sequence[int]) -> list[tuple[list[float], bool]]:
    """Return log-probabilities (nats) of each sequence's last tokens, and whether all are the likeliest there.

    Args:
        model: a causal language model in eval mode.
        sequences: token ids, of which the last is predicted and not read.
        scored: for every sequence how many of its last tokens, fewer than it has.

    Raises:
        InputError, CellError: as :func:`read`.
    """

    def work(level: Level) -> dict[int, tuple[list[float], bool]]:
        numbers = list(level.nodes)
        nodes = [node for number in numbers for node in level.nodes[number]]
        labels = [token for number in numbers for token in sequences[number][-scored[number] :]]
        figures, likeliest = _chosen(level.logits, torch.tensor(nodes), torch.tensor(labels))
        spans, start = {}, 0
        for number in numbers:
            spans[number] = slice(start, start := start + scored[number])
        return {number: (figures[span], all(likeliest[span])) for number, span in spans.items()}

    return read(model, [sequence[:-1] for sequence in sequences], scored, work)


def pair_cost(model: Any) -> float:
    """Return the cost of attention to one place, in units of all else a decoder block computes for a place.

    For hidden size h these are about 4 h and 24 h² operations; attention runs at about half the speed of the rest. A
    processor with bfloat16 products does the rest faster in that precision, but no attention.
    """
    weight = model.get_input_embeddings().weight
    fast = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_bfloat16_products()
    return (BFLOAT16_GAIN if fast else 1) / (3 * float(model.config.get_text_config().hidden_size))


def has_bfloat16_products() -> bool:
    """Tell whether this processor multiplies bfloat16 matrices in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def shares_prefixes(model: Any) -> bool:
    """Tell whether a model answers alike when sequences share their beginnings, by trying it on some.

    Models whose attention does not take a mask of ours, or that count positions by themselves, do not. Some do so
    beyond the window of their local attention alone, so that one of the sequences is longer than any that its config
    names. It depends on the architecture alone, so each model is tried once.
    """
    if model not in _sharing:
        _sharing[model] = _answers_alike(model)
    return _sharing[model]


def _answers_alike(model: Any) -> bool:
    config = model.config.get_text_config()
    size, windows = config.vocab_size, _windows(config.to_dict(), context_length(model))
    if any(window > LONGEST_TRIED for window in windows):
        return False
    # In the order of their tokens, so that the end of the first stands between the beginning and the end of the second.
    first = [1, 2, *([3, 4] * (max(windows, default=0) // 2 + 1))]
    sequences = [[token % size for token in each] for each in (first, (1, 2, 5))]
    budget = len(first) + 4
    try:
        together = read_trees(model, rows_of(dict(enumerate(sequences)), [1, 1], budget, 0.0), budget)
        (branch,) = (deeper for _, deeper in together.extend([together.nodes[1][0]], [6 % size]))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return False
    found = torch.stack([*together.logits[[together.nodes[0][0], together.nodes[1][0]]], branch.logits[0]])
    whole = (*sequences, [*sequences[1], 6 % size])
    expected = torch.stack([read_apart(model, apart({0: each}, [1]), 8).logits[0] for each in whole])
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())  # neither halved nor quantised
    return bool((found - expected).abs().max() <= (1e-3 if exact else 5e-2) * expected.abs().max())


def _windows(config: Mapping[str, Any], context: int | None) -> list[int]:
    """Return how far back a config says that some attention reaches, where that is less than the model's context.

    Not those of sliding windows, which :func:`~fpbench.scoring.forward.attention_mask` keeps by itself.
    """
    reaches = {name: each for name, each in config.items() if WINDOW.search(name) and name != "sliding_window"}
    named = {name: each for name, each in reaches.items() if type(each) is int}
    return [each for each in named.values() if 1 < each < (context or each + 1)]


def _chosen(logits: Tensor, nodes: Tensor, tokens: Tensor, chunk: int = 32) -> tuple[list[float], list[bool]]:
    """Return log p of ``tokens`` [m] after ``nodes`` [m], and whether each is the likeliest, from logits [n, V]."""
    figures: list[float] = []
    likeliest: list[bool] = []
    for at, token in zip(nodes.to(logits.device).split(chunk), tokens.to(logits.device).split(chunk), strict=True):
        rows = logits[at].float()  # (chunk, V): few, which a processor's cache holds through all three passes
        figures += (-cross_entropy(rows, token, reduction="none")).tolist()
        likeliest += (rows.argmax(dim=-1) == token).tolist()
    return figures, likeliest


def _check(model: Any, sequences: Sequence[TokenIds], ahead: int) -> None:
    if model.training:
        raise InputError("the model is in training mode, where dropout falsifies its answers: call model.eval() first.")
    limit = context_length(model)
    for sequence in sequences:
        if not len(sequence):
            raise InputError("a prompt has no tokens: expected some text, or a tokenizer that adds a BOS.")
        if limit is not None and len(sequence) + ahead > limit:
            taken = f"{len(sequence)} tokens" + (f" and its response up to {ahead}" if ahead else "")
            raise InputError(f"a prompt takes {taken}, the model's context holds {limit}: shorten the prompt.")
