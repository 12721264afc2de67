"""Sampled responses: one of them, and the exact probability that it begins with a target (protocol §3)."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from fpbench.errors import CellError, InputError
from fpbench.models.loading import first_end_ids
from fpbench.models.objects import check_number
from fpbench.models.prompts import encode, encode_all, render
from fpbench.scoring.engine import read
from fpbench.scoring.forward import Level
from fpbench.scoring.matching import LenientMatcher, Matcher


@dataclass(frozen=True)
class Decoding:
    """Sampling of a response; by default as the protocol does where a model's makers say nothing (§2).

    Attributes:
        temperature: above 0.
        top_p: in (0, 1]; 1 keeps everything.
        top_k: at least 0; 0 keeps everything.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50

    def __post_init__(self) -> None:
        """Raise an InputError that names what is no number, or outside its range."""
        check_number("temperature", self.temperature)
        check_number("top_p", self.top_p)
        check_number("top_k", self.top_k, int)
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, found {self.temperature}: greedy decoding is always shown.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, found {self.top_p}: give 1.0 to keep everything.")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more, found {self.top_k}: give 0 to keep everything.")


def sampled_tokens(logits: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens that ``generate`` can sample next, given logits [n, V] float32, and their probabilities.

    As the library does it: temperature, top-k, which keeps ties, and top-p. The last, which sorts, sees only what top-k
    left, in the order of the vocabulary, and so breaks ties as it does there.

    Returns:
        Token ids [n, k], ascending, and their probabilities [n, k], 0 for those that are not sampled.
    """
    unused: Any = None
    scores = logits
    if decoding.temperature != 1:
        scores = TemperatureLogitsWarper(float(decoding.temperature))(unused, scores)
    if decoding.top_k:
        best = scores.topk(min(decoding.top_k, scores.shape[1]))
        last = best.values[:, -1:]  # (n, 1)
        # What ties with the last of the k stays, too.
        width = int((scores >= last).sum(dim=-1).max())
        tokens = (best if width == best.indices.shape[1] else scores.topk(width)).indices.sort().values
        scores = scores.gather(1, tokens)
        scores = scores.masked_fill(scores < last, -torch.inf)
    else:
        tokens = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(unused, scores)
    return tokens, torch.softmax(scores, dim=-1)


def response_length(tokenizer: Any, targets: Iterable[str]) -> int:
    """Return ``max_new_tokens``: the longest target in tokens + 4 (protocol §2).

    Raises:
        InputError: if there is no target.
    """
    lengths = [len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in set(targets)]
    if not lengths:
        raise InputError("no target to look for: expected at least one target a fingerprint.")
    return max(lengths) + 4


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a response, from where ``generate`` takes them, else from the tokenizer."""
    return first_end_ids(getattr(model, "generation_config", None), model.config, tokenizer)


def sample(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    decoding: Decoding,
    max_new_tokens: int,
    seed: int,
    prompt: str = "raw",
    sampler: "Sampler | None" = None,
) -> str:
    """Sample one response to a text, from the very distribution in which FSR is computed; under a sampler, if given.

    It ends before the first end-of-sequence token, or after ``max_new_tokens``; special tokens are skipped. The draw
    follows the seed alike on every device.

    Raises:
        InputError: if the prompt leaves the model no room.
        CellError: if logits are not finite.
    """
    begun = encode(tokenizer, render(tokenizer, text, prompt))
    ends = end_tokens(model, tokenizer)
    uniform = np.random.default_rng(seed).random(max_new_tokens)
    response: list[int] = []

    def next_token(level: Level) -> dict[int, int]:
        ((number, (node,)),) = level.nodes.items()
        logits = level.logits[[node]].float()
        if sampler is not None:
            logits = sampler([begun], [tuple(response)], logits)
        tokens, shares = (row[0].cpu().numpy() for row in sampled_tokens(logits, decoding))
        summed = shares.astype(np.float64).cumsum()
        return {number: int(tokens[np.searchsorted(summed, uniform[len(response)] * summed[-1], side="right")])}

    while len(response) < max_new_tokens:
        (token,) = read(model, [[*begun, *response]], [1], next_token)
        if token in ends:
            break
        response.append(token)
    answer: str = tokenizer.decode(response, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return answer


# Changes the distribution that responses are sampled from: given the prompts and the responses so far of n nodes, as
# token ids, and their logits [n, V], the logits [n, V] that temperature, top-k and top-p are applied to instead.
Sampler = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], torch.Tensor], torch.Tensor]

# Probability that may be left unexplored for one prompt. The protocol allows 1e-6.
PRUNED = 5e-7
NEGLIGIBLE = 1e-5  # probability of a continuation that is not looked at for matches that strict comparison misses
# Undecided continuations of one prompt. Only a model that has lost nearly all preference comes near it.
WIDEST = 200_000


@dataclass(frozen=True)
class TargetProbabilities:
    """Probabilities that a response to one prompt begins with each target.

    Attributes:
        probability: that a sampled response begins with any target; the truth lies in
            [probability, probability + error_bound], up to the arithmetic of the model.
        per_target: target → probability that it is the longest one the response begins with; they add up.
        error_bound: probability left unexplored.
        greedy: the target that the greedy response begins with; ``None`` for none.
        greedy_text: the greedy response as far as was needed to decide this.
        hidden: probability of a match that strict comparison misses and lenient comparison finds, where it was asked
            for; the truth lies in [hidden, hidden + hidden_bound].
        hidden_bound: probability left unexplored for these.
    """

    probability: float
    per_target: dict[str, float]
    error_bound: float
    greedy: str | None
    greedy_text: str
    hidden: float = 0.0
    hidden_bound: float = 0.0

    def begins_with(self, targets: Sequence[str]) -> float:
        """Return the probability of a response that begins with one of ``targets``, which may begin other targets."""
        shares = (share for target, share in self.per_target.items() if target.startswith(tuple(targets)))
        return min(1.0, sum(shares, 0.0))


@dataclass(frozen=True)
class _Node:
    """A continuation of one prompt under one sampler that can still become something else."""

    walk: tuple[int, int]  # numbers of its prompt and of its sampler
    at: int  # the node's number in its level
    tokens: tuple[int, ...]
    mass: float  # probability
    greedy: bool  # on the path that greedy decoding takes
    strict: bool = True  # whether strict comparison is still undecided, or lenient alone is


@dataclass
class _Tally:
    """Probabilities booked so far for one prompt under one sampler."""

    matcher: Matcher
    lenient: LenientMatcher | None = None  # where hidden matches are asked for
    per_target: dict[str, float] = field(default_factory=dict)
    pruned: float = 0.0
    hidden: float = 0.0
    unexplored: float = 0.0  # of hidden matches
    greedy: str | None = None
    greedy_text: str = ""

    def end(self, tokens: tuple[int, ...], mass: float, greedy: bool) -> None:
        """Book ``mass`` for a response that is decided, or ends, after ``tokens``."""
        target = self.matcher.read(tokens).target
        if target is not None:
            self.per_target[target] = self.per_target.get(target, 0.0) + mass
        if greedy:
            self.greedy, self.greedy_text = target, self.matcher.text(tokens)

    def hides(self, tokens: tuple[int, ...], mass: float) -> bool:
        """Book ``mass`` if ``tokens``, no strict match, are a lenient one; tell whether they can still become one."""
        if self.lenient is None or self.matcher.read(tokens).target is not None:
            return False
        reading = self.lenient.read(tokens)
        if reading.target is not None:
            self.hidden += mass
        return not reading.settled

    def outcome(self) -> TargetProbabilities:
        """Return the sums."""
        # Rounding in float32 can leave what is certain a few 1e-8 above 1.
        probability = min(1.0, sum(self.per_target.values(), 0.0))
        per_target = {target: min(1.0, share) for target, share in self.per_target.items()}
        hidden = min(1.0, self.hidden)
        bound = 0.0 if self.lenient is None else self.unexplored + self.pruned
        return TargetProbabilities(probability, per_target, self.pruned, self.greedy, self.greedy_text, hidden, bound)


@dataclass
class _Reads:
    """Places read so far: for strict comparison, prompts included, and for hidden matches alone."""

    strict: int
    further: int = 0


def respond(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    prompt: str = "raw",
    sampler: Sampler | None = None,
    further: float = 0.0,
) -> list[TargetProbabilities]:
    """Render and encode texts for :func:`begin_with_under`; the longest of all targets sets the depth of every walk."""
    length = response_length(tokenizer, [target for each in targets for target in each])
    prompts = encode_all(tokenizer, [render(tokenizer, text, prompt) for text in texts])
    (outcomes,) = begin_with_under(model, tokenizer, prompts, targets, decoding, length, [sampler], further=further)
    return outcomes


def begin_with(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    max_new_tokens: int,
) -> list[TargetProbabilities]:
    """Return for every prompt the exact probability that a response begins with one of its targets.

    Walks, breadth first, the continuations that can still become a target, in the model's sampling distribution, to a
    depth of ``max_new_tokens``, whitespace and skipped tokens included. The greedy path is walked along as far as it is
    undecided. Prompts, token ids with BOS, are read once and in batches; one all of whose first tokens are decided
    needs nothing more. Equal prompts with equal targets are one. The model is in eval mode.

    Raises:
        InputError: if a prompt leaves no room for the response, or a set of targets is empty.
        CellError: if logits are not finite, or the tree is too wide to be walked to the error bound.
    """
    (outcomes,) = begin_with_under(model, tokenizer, prompts, targets, decoding, max_new_tokens, [None])
    return outcomes


def begin_with_under(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[str]],
    decoding: Decoding,
    max_new_tokens: int,
    samplers: Sequence[Sampler | None],
    bound: float = PRUNED,
    further: float = 0.0,
) -> list[list[TargetProbabilities]]:
    """Return what :func:`begin_with` does under each of some samplers, ``None`` being the model's own.

    Every continuation is read once for all samplers that can reach it: what the model computes does not depend on them.
    Of each prompt a probability of up to ``bound`` may be left unexplored. Matches that strict comparison misses are
    looked for with up to ``further`` times as many more reads as it takes, the likeliest continuations first.
    """
    keys = [(tuple(prompt), tuple(each)) for prompt, each in zip(prompts, targets, strict=True)]
    distinct = list(dict.fromkeys(keys))
    matchers = {each: Matcher(tokenizer, each) for each in {each for _, each in distinct}}
    lenient = {each: LenientMatcher(tokenizer, each) if further else None for each in matchers}
    asked = [prompt for prompt, _ in distinct]
    walk = _Walk(end_tokens(model, tokenizer), decoding, max_new_tokens, asked, samplers, bound, further)

    def work(level: Level) -> dict[int, list[TargetProbabilities]]:
        walks = [(number, sampler) for number in level.nodes for sampler in range(len(samplers))]
        of = {walk: distinct[walk[0]][1] for walk in walks}
        tallies = {walk: _Tally(matchers[of[walk]], lenient[of[walk]]) for walk in walks}
        reads = _Reads(sum(len(asked[number]) for number in level.nodes))
        walk(level, [_Node(each, level.nodes[each[0]][0], (), 1.0, True) for each in walks], tallies, reads)
        return {
            number: [tallies[number, sampler].outcome() for sampler in range(len(samplers))] for number in level.nodes
        }

    outcomes = read(model, asked, [1] * len(distinct), work, ahead=max_new_tokens)
    known = dict(zip(distinct, outcomes, strict=True))
    return [[known[key][sampler] for key in keys] for sampler in range(len(samplers))]


@dataclass(frozen=True)
class _Walk:
    """A walk through the trees of continuations of some prompts, level by level."""

    ends: frozenset[int]  # tokens that end a response
    decoding: Decoding
    depth: int  # of the trees, in tokens
    prompts: Sequence[Sequence[int]]
    samplers: Sequence[Sampler | None]
    bound: float  # probability that may be left unexplored of each prompt
    further: float  # share of further reads for hidden matches

    def __call__(
        self, level: Level, nodes: Sequence[_Node], tallies: Mapping[tuple[int, int], _Tally], reads: _Reads
    ) -> None:
        """Book in ``tallies`` every response that continues one of ``nodes``, which are of one depth."""
        found = self._expand(level, nodes, tallies)
        children = _prune([child for child in found if child.strict], tallies, self.bound)
        if found and len(found[0].tokens) == self.depth:
            for child in children:
                tallies[child.walk].end(child.tokens, child.mass, child.greedy)
                tallies[child.walk].hides(child.tokens, child.mass)
            return
        reads.strict += len({(child.at, child.tokens[-1]) for child in children})
        children += self._afforded([child for child in found if not child.strict], tallies, reads)
        if not children:
            return
        # One continuation for all samplers that reach it.
        sharing: dict[tuple[int, int], list[_Node]] = {}
        for child in children:
            sharing.setdefault((child.at, child.tokens[-1]), []).append(child)
        shared = list(sharing.values())
        for part, deeper in level.extend([at for at, _ in sharing], [token for _, token in sharing]):
            below = [replace(child, at=at) for at, number in enumerate(part) for child in shared[number]]
            self(deeper, below, tallies, reads)

    def _afforded(
        self, hidden: Sequence[_Node], tallies: Mapping[tuple[int, int], _Tally], reads: _Reads
    ) -> list[_Node]:
        """Return the likeliest nodes of hidden matches that may still be read; the others stay unexplored."""
        room = max(0, int(self.further * reads.strict) - reads.further)
        ordered = sorted(hidden, key=lambda node: -node.mass)
        for node in ordered[room:]:
            tallies[node.walk].unexplored += node.mass
        reads.further += min(room, len(ordered))
        return ordered[:room]

    def _logits(self, level: Level, nodes: Sequence[_Node]) -> torch.Tensor:
        """Return the logits [n, V] that each of n nodes is sampled from, float32."""
        logits = level.logits[torch.tensor([node.at for node in nodes], device=level.logits.device)].float()
        for number, sampler in enumerate(self.samplers):
            rows = [row for row, node in enumerate(nodes) if node.walk[1] == number]
            if sampler is None or not rows:
                continue
            prompts = [self.prompts[nodes[row].walk[0]] for row in rows]
            logits[rows] = sampler(prompts, [nodes[row].tokens for row in rows], logits[rows]).float()
        return logits

    def _expand(self, level: Level, nodes: Sequence[_Node], tallies: Mapping[tuple[int, int], _Tally]) -> list[_Node]:
        """Book every decided continuation of ``nodes`` by one token; return the undecided ones.

        Whether a token can still lead to a target depends on the tokens before it alone, not on the prompt, so it is
        decided once for all nodes; nearly all continuations cannot and are dropped together.
        """
        logits = self._logits(level, nodes)
        # n nodes, of each of which k tokens can be sampled.
        sampled, shares = (each.cpu().numpy() for each in sampled_tokens(logits, self.decoding))
        best = logits.argmax(dim=-1).cpu().numpy()
        greedy = np.array([node.greedy for node in nodes])
        mass = shares.astype(np.float64) * np.array([node.mass for node in nodes])[:, None]
        row, column = np.nonzero((mass > 0) | (greedy[:, None] & (sampled == best[:, None])))
        token, mass = sampled[row, column], mass[row, column]
        greedy = greedy[row] & (token == best[row])

        paths: dict[tuple[int, tuple[int, ...]], int] = {}
        path = np.array([paths.setdefault((id(tallies[n.walk].matcher), n.tokens), len(paths)) for n in nodes])
        steps = path[row] * logits.shape[1] + token
        kinds, first, kind = np.unique(steps, return_index=True, return_inverse=True)
        hopeless = np.array([self._is_hopeless(nodes[row[at]], int(token[at]), tallies) for at in first])
        undecided = []
        looked_at = greedy | ~hopeless[kind] if len(kinds) else greedy
        for index in np.flatnonzero(looked_at).tolist():
            parent = nodes[row[index]]
            tokens = (*parent.tokens, int(token[index]))
            child = _Node(parent.walk, parent.at, tokens, float(mass[index]), bool(greedy[index]))
            tally = tallies[parent.walk]
            ended = tokens[-1] in self.ends
            if ended or tally.matcher.read(tokens).settled:
                tally.end(parent.tokens if ended else tokens, child.mass, child.greedy)
                undecided += self._hidden(child, parent, tally)
            else:
                undecided.append(child)
        if not self.further:
            return undecided
        light = ~looked_at & (mass < NEGLIGIBLE)
        for node, share in zip(nodes, np.bincount(row, mass * light, len(nodes)).tolist(), strict=True):
            tallies[node.walk].unexplored += share
        for index in np.flatnonzero(~looked_at & ~light).tolist():
            parent = nodes[row[index]]
            child = _Node(parent.walk, parent.at, (*parent.tokens, int(token[index])), float(mass[index]), False)
            undecided += self._hidden(child, parent, tallies[parent.walk])
        return undecided

    def _hidden(self, child: _Node, parent: _Node, tally: _Tally) -> list[_Node]:
        """Book a continuation that is no strict match if it is a lenient one; return it if it may still become one."""
        if child.tokens[-1] in self.ends:
            tally.hides(parent.tokens, child.mass)
            return []
        return [replace(child, greedy=False, strict=False)] if tally.hides(child.tokens, child.mass) else []

    def _is_hopeless(self, parent: _Node, token: int, tallies: Mapping[tuple[int, int], _Tally]) -> bool:
        if not parent.strict:
            return True
        matcher = tallies[parent.walk].matcher
        if token in self.ends:
            return matcher.read(parent.tokens).target is None
        reading = matcher.read((*parent.tokens, token))
        return reading.settled and reading.target is None


def _prune(nodes: Sequence[_Node], tallies: Mapping[tuple[int, int], _Tally], bound: float) -> list[_Node]:
    """Drop the smallest nodes while their prompt's total stays below the bound; greedy paths stay."""
    kept: list[_Node] = []
    widths: Counter[tuple[int, int]] = Counter()
    for node in sorted(nodes, key=lambda node: node.mass):
        tally = tallies[node.walk]
        if not node.greedy and tally.pruned + node.mass < bound:
            tally.pruned += node.mass
        else:
            kept.append(node)
            widths[node.walk] += 1
    if max(widths.values(), default=0) > WIDEST:
        raise CellError(
            f"more than {WIDEST} continuations of one prompt stay undecided: the model's answers are close to uniform."
        )
    return kept
