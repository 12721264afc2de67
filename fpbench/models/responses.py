"""The exact probability that a sampled response begins with a target: a walk of the continuation tree (protocol §3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fpbench.errors import InputError
from fpbench.models.matching import Matcher
from fpbench.models.scoring import Decoding, context_length, next_token_logits, sampling_distribution

# Probability that may be left unexplored for one prompt. The protocol allows 1e-6.
PRUNED = 1e-7


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


@dataclass(frozen=True)
class _Node:
    """A continuation of one prompt that can still become something else."""

    prompt: int
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
    """``max_new_tokens`` = longest target in tokens + 4 (protocol §2)."""
    return 4 + max(len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a response, from where ``generate`` takes them, else from the tokenizer."""
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def begin_with(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    max_new_tokens: int,
) -> list[Outcome]:
    """The exact probability that a response to each prompt begins with one of its targets.

    Walks, breadth first and for all prompts at once, the continuations that can still become a target, in the model's
    sampling distribution. The greedy path is walked along as far as it is undecided. A prompt all of whose first
    tokens are decided takes one forward pass.

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
    """
    _check_room(model, prompts, max_new_tokens)
    matchers = {key: Matcher(tokenizer, key) for key in {tuple(each) for each in targets}}
    tallies = [_Tally(matchers[tuple(each)]) for each in targets]
    ends = end_tokens(model, tokenizer)
    frontier = [_Node(index, (), 1.0, True) for index in range(len(prompts))]
    for _ in range(max_new_tokens):
        children: list[list[_Node]] = [[] for _ in prompts]
        sequences = [[*prompts[node.prompt], *node.tokens] for node in frontier]
        for indices, logits in next_token_logits(model, sequences):
            best = logits.argmax(dim=-1).tolist()
            for index, choice, row in zip(indices, best, sampling_distribution(logits, decoding), strict=True):
                node = frontier[index]
                children[node.prompt] += _expand(node, row, choice, ends, tallies[node.prompt])
        frontier = [node for each, tally in zip(children, tallies, strict=True) for node in _prune(each, tally)]
        if not frontier:
            break
    for node in frontier:
        tallies[node.prompt].end(node.tokens, node.mass, node.greedy)
    return [
        # Rounding in float32 can leave a certain hit a few 1e-8 above 1.
        Outcome(min(1.0, sum(each.per_target.values())), each.per_target, each.pruned, each.greedy, each.greedy_text)
        for each in tallies
    ]


def _expand(node: _Node, row: torch.Tensor, choice: int, ends: frozenset[int], tally: _Tally) -> list[_Node]:
    """Book every decided continuation of ``node`` in ``tally``; return the undecided ones."""
    support = row.nonzero().squeeze(1)
    undecided = []
    for token, share in zip(support.tolist(), row[support].tolist(), strict=True):
        child = _Node(node.prompt, (*node.tokens, token), node.mass * share, node.greedy and token == choice)
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
    return kept


def _check_room(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = context_length(model)
    for prompt in prompts:
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise InputError(
                f"a prompt takes {len(prompt)} tokens and its response up to {max_new_tokens}, "
                f"the model's context holds {limit}: shorten the prompt."
            )
