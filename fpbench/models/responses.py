"""The exact probability that a sampled response begins with a target: a walk of the continuation tree (protocol §3)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fpbench.errors import CellError, InputError
from fpbench.models.matching import Matcher
from fpbench.models.prompts import encode, render
from fpbench.models.scoring import Decoding, Prompts, context_length, read_prompts, sampling_distribution

# Probability that may be left unexplored for one prompt. The protocol allows 1e-6.
PRUNED = 5e-7
# Undecided continuations of one prompt. Only a model that has lost nearly all preference comes near it.
WIDEST = 200_000


@dataclass(frozen=True)
class Outcome:
    """What one prompt's responses begin with.

    Attributes:
        probability: that a sampled response begins with any target; the truth lies in
            [probability, probability + error_bound], up to the arithmetic of the model.
        per_target: target → probability that it is the longest one the response begins with; they add up.
        error_bound: probability left unexplored.
        greedy: the target that the greedy response begins with; ``None`` for none.
        greedy_text: the greedy response as far as was needed to decide this.
    """

    probability: float
    per_target: dict[str, float]
    error_bound: float
    greedy: str | None
    greedy_text: str

    def begins_with(self, targets: Sequence[str]) -> float:
        """Probability that the response begins with one of ``targets``, which may begin other targets in turn."""
        shares = (share for target, share in self.per_target.items() if target.startswith(tuple(targets)))
        return min(1.0, sum(shares, 0.0))


@dataclass(frozen=True)
class _Node:
    """A continuation of one prompt that can still become something else."""

    row: int
    tokens: tuple[int, ...]
    mass: float
    greedy: bool


@dataclass
class _Tally:
    """What has been found out about one prompt."""

    matcher: Matcher
    per_target: dict[str, float] = field(default_factory=dict)
    pruned: float = 0.0
    greedy: str | None = None
    greedy_text: str = ""

    def end(self, tokens: tuple[int, ...], mass: float, greedy: bool) -> None:
        """A response is decided, or ends, after ``tokens``."""
        target = self.matcher.read(tokens).target
        if target is not None:
            self.per_target[target] = self.per_target.get(target, 0.0) + mass
        if greedy:
            self.greedy, self.greedy_text = target, self.matcher.text(tokens)


def response_length(tokenizer: Any, targets: Iterable[str]) -> int:
    """``max_new_tokens`` = longest target in tokens + 4 (protocol §2).

    Raises:
        InputError: if there is no target.
    """
    lengths = [len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in set(targets)]
    if not lengths:
        raise InputError("no target to look for: expected at least one target a fingerprint.")
    return max(lengths) + 4


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a response, from where ``generate`` takes them, else from the tokenizer."""
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def respond(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    prompt: str = "raw",
) -> list[Outcome]:
    """What responses to texts begin with; :func:`begin_with` for texts, equal ones scored once.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        texts: the queries, before rendering.
        targets: for every text the targets that count; the longest of all sets the depth of every walk.
        decoding: how responses are sampled.
        prompt: ``"raw"`` or ``"chat"``.
    """
    length = response_length(tokenizer, [target for each in targets for target in each])
    keys = [(text, tuple(each)) for text, each in zip(texts, targets, strict=True)]
    distinct = list(dict.fromkeys(keys))
    prompts = [encode(tokenizer, render(tokenizer, text, prompt)) for text, _ in distinct]
    outcomes = begin_with(model, tokenizer, prompts, [each for _, each in distinct], decoding, length)
    known = dict(zip(distinct, outcomes, strict=True))
    return [known[key] for key in keys]


def begin_with(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    max_new_tokens: int,
) -> list[Outcome]:
    """The exact probability that a response to each prompt begins with one of its targets.

    Walks, breadth first, the continuations that can still become a target, in the model's sampling distribution. The
    greedy path is walked along as far as it is undecided. Prompts are read once and in batches; one all of whose first
    tokens are decided needs nothing more.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        prompts: token ids, BOS included.
        targets: for every prompt the targets that count.
        decoding: how responses are sampled.
        max_new_tokens: depth; whitespace and skipped tokens count.

    Returns:
        One outcome a prompt, in order.

    Raises:
        InputError: if a prompt leaves no room for the response, or a set of targets is empty.
        CellError: if logits are not finite, or the tree is too wide to be walked to the error bound.
    """
    _check_room(model, prompts, max_new_tokens)
    matchers = {key: Matcher(tokenizer, key) for key in {tuple(each) for each in targets}}
    tallies = [_Tally(matchers[tuple(each)]) for each in targets]
    ends = end_tokens(model, tokenizer)
    for batch in read_prompts(model, prompts):
        _walk(batch, [tallies[index] for index in batch.indices], ends, decoding, max_new_tokens)
    return [
        # Rounding in float32 can leave a certain hit a few 1e-8 above 1.
        Outcome(
            min(1.0, sum(each.per_target.values(), 0.0)), each.per_target, each.pruned, each.greedy, each.greedy_text
        )
        for each in tallies
    ]


def _walk(
    batch: Prompts, tallies: Sequence[_Tally], ends: frozenset[int], decoding: Decoding, max_new_tokens: int
) -> None:
    """Walk the trees of a batch of prompts, level by level, and book in ``tallies`` what their responses become."""
    frontier = [_Node(row, (), 1.0, True) for row in range(len(tallies))]
    scored: Iterable[tuple[range, torch.Tensor]] = [(range(len(frontier)), batch.logits)]
    for depth in range(1, max_new_tokens + 1):
        siblings = Counter(node.row for node in frontier)
        children: list[list[_Node]] = [[] for _ in tallies]
        for span, logits in scored:
            best = logits.argmax(dim=-1).tolist()
            for index, choice, row in zip(span, best, sampling_distribution(logits, decoding), strict=True):
                node = frontier[index]
                spare = PRUNED / 2 / max_new_tokens / siblings[node.row]
                children[node.row] += _expand(node, row, choice, ends, tallies[node.row], spare)
        frontier = [node for each, tally in zip(children, tallies, strict=True) for node in _prune(each, tally)]
        if not frontier or depth == max_new_tokens:
            break
        scored = batch.extend([node.row for node in frontier], [node.tokens for node in frontier])
    for node in frontier:
        tallies[node.row].end(node.tokens, node.mass, node.greedy)


def _expand(
    node: _Node, row: torch.Tensor, choice: int, ends: frozenset[int], tally: _Tally, spare: float
) -> list[_Node]:
    """Book every decided continuation of ``node`` in ``tally``; return the undecided ones.

    The tail of the distribution is not even read as long as its mass stays below ``spare``.
    """
    shares, tokens = row.double().sort()
    mass = shares * node.mass
    unread = int(torch.searchsorted(mass.cumsum(0), spare))
    if node.greedy:
        unread = min(unread, int((shares < shares[-1]).sum()))
    tally.pruned += float(mass[:unread].sum())
    undecided = []
    for token, share in zip(tokens[unread:].tolist(), mass[unread:].tolist(), strict=True):
        child = _Node(node.row, (*node.tokens, token), share, node.greedy and token == choice)
        if token in ends:
            tally.end(node.tokens, child.mass, child.greedy)
        elif tally.matcher.read(child.tokens).settled:
            tally.end(child.tokens, child.mass, child.greedy)
        else:
            undecided.append(child)
    return undecided


def _prune(nodes: list[_Node], tally: _Tally) -> list[_Node]:
    """Drop the smallest nodes while the prompt's total stays below the bound; the greedy path stays."""
    kept = []
    for node in sorted(nodes, key=lambda node: node.mass):
        if not node.greedy and tally.pruned + node.mass < PRUNED:
            tally.pruned += node.mass
        else:
            kept.append(node)
    if len(kept) > WIDEST:
        raise CellError(
            f"more than {WIDEST} continuations of one prompt stay undecided: the model's answers are close to uniform."
        )
    return kept


def _check_room(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = context_length(model)
    for prompt in prompts:
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise InputError(
                f"a prompt takes {len(prompt)} tokens and its response up to {max_new_tokens}, "
                f"the model's context holds {limit}: shorten the prompt."
            )
