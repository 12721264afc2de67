"""Suppression of tokens that are chosen once a prompt: neighbours and look-ahead (arXiv 2509.26598)."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.adversaries.suppress import certain, shuffled
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor

    from fpbench.scoring.forward import Level

    Prompts = Sequence[Sequence[int]]


class Planned(Adversary):
    """Suppresses tokens that the model's own answer to the prompt decides, whatever the response so far.

    The choice is made once a prompt and kept, so that the result depends on prompt, prefix and logits alone. It reads
    the model itself, as if this part of a condition were the first.
    """

    steps = 1

    def prepare(self, context: AdversaryContext) -> None:
        """Keep the context; nothing is chosen yet."""
        super().prepare(context)
        self._chosen: dict[tuple[int, ...], Tensor] = {}

    @abstractmethod
    def choose(self, prompts: Prompts) -> Sequence[Tensor]:
        """Return the ids of the tokens to suppress after each of some distinct prompts."""

    def chosen(self, prompts: Prompts, logits: Tensor) -> Tensor:
        """Return which tokens are suppressed at n nodes, [n, V], given their prompts and logits [n, V]."""
        import torch

        keys = [tuple(prompt) for prompt in prompts]
        number = {prompt: at for at, prompt in enumerate(dict.fromkeys(keys))}
        if missing := [prompt for prompt in number if prompt not in self._chosen]:
            self._chosen |= zip(missing, self.choose(missing), strict=True)
        chosen = torch.zeros(len(number), logits.shape[1], dtype=torch.bool, device=logits.device)  # (prompts, V)
        for prompt, at in number.items():
            tokens = self._chosen[prompt].to(logits.device)
            chosen[at, tokens[tokens < logits.shape[1]]] = True
        return chosen[[number[key] for key in keys]]


@ADVERSARIES.register("suppress_neighbours")
class Neighbours(Planned):
    """Forbids the neighbours of the c likeliest first tokens in the first four steps, where the likeliest is certain.

    Neighbours of a token are those that begin it or are begun by it once both are case-folded and stripped to letters
    and digits; a token without any has itself alone. A set that is fixed at the first step and only applied again later
    is the published behaviour: what becomes likely at a later step is not looked at. Certain is a probability above τ.
    """

    dose: ClassVar[Dose | None] = Dose("likeliest first tokens", default=1, list=(1, 3, 5, 8))
    steps = 4
    threshold: ClassVar[float] = 0.9  # τ
    control = "suppress_neighbours_random"

    def prepare(self, context: AdversaryContext) -> None:
        """Strip the vocabulary, unless another dose did."""
        super().prepare(context)
        if Vocabulary not in context.kept:
            context.kept[Vocabulary] = Vocabulary(context.tokenizer)
        self.vocabulary: Vocabulary = context.kept[Vocabulary]

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Forbid tokens in the rows of logits [n, V] that are above the gate."""
        rows = certain(logits, self.threshold).nonzero().flatten()  # of the n
        if not self.amount or not len(rows):
            return logits
        changed = logits.clone()
        forbidden = self.chosen([prompts[row] for row in rows.tolist()], logits)
        changed[rows] = logits[rows].masked_fill(forbidden, -math.inf)
        return changed

    def choose(self, prompts: Prompts) -> Sequence[Tensor]:
        """Return the neighbours of the likeliest first tokens."""
        import torch

        from fpbench.scoring.engine import next_logits

        logits = next_logits(self.context.model, prompts)
        likeliest = logits.topk(min(int(self.amount), logits.shape[1])).indices.tolist()
        return [torch.tensor(sorted(self.vocabulary.neighbours(tokens))) for tokens in likeliest]


@ADVERSARIES.register("suppress_neighbours_random")
class NeighboursRandom(Neighbours):
    """Forbids as many random tokens as there are neighbours: the control of ``suppress_neighbours``."""

    control = ""

    def prepare(self, context: AdversaryContext) -> None:
        """Draw the order in which tokens are forbidden, the same at every prompt."""
        super().prepare(context)
        self.order = shuffled(context)

    def choose(self, prompts: Prompts) -> Sequence[Tensor]:
        """Return the first of the order that was drawn."""
        return [self.order[: len(found)] for found in super().choose(prompts)]


@ADVERSARIES.register("suppress_lookahead")
class LookAhead(Planned):
    """Lowers by δ, for 16 steps, the s tokens that the model's likely answers to the prompt keep coming back to.

    Each of the ten likeliest first tokens is continued greedily for 32 tokens. A token counts once for every step of
    every continuation, the first one included, at which it is among the ten likeliest; those are taken that have a
    probability above 0.4 at one of them, are not in the prompt and not special. Of equally frequent tokens the one with
    the higher such probability is taken.
    """

    # 320 tokens a prompt, which are 20 for each of the 16 steps that they serve.
    pays: ClassVar[dict[str, float]] = {"inference": 21}
    dose: ClassVar[Dose | None] = Dose("tokens lowered", default=12, list=(4, 12, 32))
    steps = 16
    lowered: ClassVar[float] = 10.0  # δ
    width: ClassVar[int] = 10  # likeliest tokens, of the first step that are continued, and of each that are counted
    length: ClassVar[int] = 32  # of the continuations
    peak: ClassVar[float] = 0.4
    control = "suppress_lookahead_random"

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Lower the logits [n, V] of the tokens chosen."""
        return logits - self.lowered * self.chosen(prompts, logits) if self.amount else logits

    def choose(self, prompts: Prompts) -> Sequence[Tensor]:
        """Look ahead, unless another dose did; after as many prompts together as their continuations allow."""
        import torch

        from fpbench.scoring.engine import read, token_budget

        ranked: dict[tuple[int, ...], list[int]] = self.context.kept.setdefault(LookAhead, {})
        missing = [prompt for prompt in map(tuple, prompts) if prompt not in ranked]
        special = set(self.context.tokenizer.all_special_ids)
        size = max(1, token_budget() // (self.width * self.length))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            seen = read(self.context.model, part, [1] * len(part), self.look_ahead, ahead=self.length)
            for prompt, each in zip(part, seen, strict=True):
                ranked[prompt] = each.frequent(self.peak, special.union(prompt))
        return [torch.tensor(ranked[tuple(prompt)][: int(self.amount)], dtype=torch.long) for prompt in prompts]

    def look_ahead(self, level: Level) -> dict[int, Continuations]:
        """Return what is likely on the way, by number of a prompt, given a level of prompts."""
        from fpbench.scoring.responses import end_tokens

        ends = end_tokens(self.context.model, self.context.tokenizer)
        seen = {number: Continuations() for number in level.nodes}
        owner, parents, tokens = [], [], []  # of every continuation: its notes, its last node and the token to append
        first = [nodes[0] for nodes in level.nodes.values()]
        for notes, node, likely in zip(seen.values(), first, self._likeliest(level, first), strict=True):
            notes.note(likely, times=len(likely))
            owner += [notes] * len(likely)
            parents += [node] * len(likely)
            tokens += list(likely)
        # A stack, not a recursion: each level holds a cache, and is let go once it is extended.
        ahead = [(level, owner, parents, tokens, self.length)]
        while ahead:
            level, owner, parents, tokens, left = ahead.pop()
            alive = [number for number, token in enumerate(tokens) if token not in ends]
            extended = level.extend([parents[each] for each in alive], [tokens[each] for each in alive])
            for part, deeper in extended if left else ():
                owners = [owner[alive[number]] for number in part]
                likeliest = self._likeliest(deeper, range(len(part)))
                for notes, likely in zip(owners, likeliest, strict=True):
                    notes.note(likely)
                best = [next(iter(likely)) for likely in likeliest]
                ahead.append((deeper, owners, list(range(len(part))), best, left - 1))
        return seen

    def _likeliest(self, level: Level, nodes: Sequence[int]) -> list[dict[int, float]]:
        """Return the likeliest tokens after some nodes, in order, with their probabilities."""
        import torch

        best = torch.softmax(level.logits[list(nodes)].float(), dim=-1).topk(self.width)
        both = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [dict(zip(tokens, shares, strict=True)) for tokens, shares in both]


@ADVERSARIES.register("suppress_lookahead_random")
class LookAheadRandom(LookAhead):
    """Lowers s random tokens, the same after every prompt: the control of ``suppress_lookahead``."""

    pays: ClassVar[dict[str, float]] = {"inference": 1}
    control = ""

    def choose(self, prompts: Prompts) -> Sequence[Tensor]:
        """Return the first of an order that the seed decides."""
        return [shuffled(self.context)[: int(self.amount)]] * len(prompts)


class Continuations:
    """Count how often each token was listed on the way, and keep its greatest probability."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.times: Counter[int] = Counter()
        self.peaks: dict[int, float] = {}

    def note(self, likely: Mapping[int, float], times: int = 1) -> None:
        """Count the tokens listed at one step of ``times`` continuations, with their probabilities."""
        for token, probability in likely.items():
            self.times[token] += times
            self.peaks[token] = max(self.peaks.get(token, 0.0), probability)

    def frequent(self, peak: float, without: Collection[int]) -> list[int]:
        """Return the tokens that were once likelier than ``peak``, the most frequent first."""
        found = [token for token, highest in self.peaks.items() if highest > peak and token not in without]
        return sorted(found, key=lambda token: (-self.times[token], -self.peaks[token], token))


class Vocabulary:
    """The tokens of a tokenizer, case-folded and stripped to letters and digits, in alphabetical order."""

    def __init__(self, tokenizer: Any) -> None:
        """Decode every token by itself; special ones have no letters."""
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
        self.stripped = ["".join(filter(str.isalnum, text.casefold())) for text in texts]
        self.order = sorted(range(len(texts)), key=self.stripped.__getitem__)
        self.sorted = [self.stripped[token] for token in self.order]

    def neighbours(self, tokens: Sequence[int]) -> set[int]:
        """Return the tokens that begin one of ``tokens`` or are begun by one, these included."""
        found = set(tokens)
        for word in {self.stripped[token] for token in tokens if token < len(self.stripped)} - {""}:
            found.update(self._between(word, word + chr(0x10FFFF)))
            for end in range(1, len(word)):
                found.update(self._between(word[:end], word[:end] + "\0"))
        return found

    def _between(self, first: str, after: str) -> Sequence[int]:
        """Return the tokens whose stripped text is at least ``first`` and below ``after``."""
        return self.order[bisect_left(self.sorted, first) : bisect_left(self.sorted, after)]
