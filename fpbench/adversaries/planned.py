"""Suppression of tokens that are chosen once a prompt: the likeliest ones' neighbours (arXiv 2509.26598)."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.adversaries.suppress import shuffled
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor

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
        """Strip the vocabulary."""
        super().prepare(context)
        self.vocabulary = Vocabulary(context.tokenizer)

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Forbid tokens in the rows of logits [n, V] that are above the gate."""
        import torch

        certain = torch.softmax(logits.float(), dim=-1).max(dim=-1).values > self.threshold
        rows = certain.nonzero().flatten()  # of the n
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
