"""Suppression: forbid the over-confident first tokens (arXiv 2509.26598, SuppressTop-k and its confidence gate)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor


class Suppression(Adversary):
    """Gives some tokens −∞ in the first steps, where the likeliest has probability above τ (temperature 1).

    A memorised answer is more certain than a natural one: the gate leaves ordinary text nearly untouched.
    """

    dose: ClassVar[Dose | None] = Dose("tokens dropped", default=1, list=(1, 3, 5, 8, 16))
    steps = 1
    threshold: ClassVar[float] = 0.9  # τ

    @abstractmethod
    def dropped(self, logits: Tensor, count: int) -> Tensor:
        """Return the ids [n, count] of the tokens to drop, given logits [n, V]."""

    def sample(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Drop tokens in the rows of logits [n, V] that are above the gate; one token at least is always left."""
        import torch

        count = min(int(self.amount), logits.shape[1] - 1)
        if not count:
            return logits
        above = certain(logits, self.threshold)
        return torch.where(above[:, None], logits.scatter(1, self.dropped(logits, count), -math.inf), logits)


@ADVERSARIES.register("suppress")
class Suppress(Suppression):
    """Drops the k likeliest first tokens."""

    control = "suppress_random"

    def dropped(self, logits: Tensor, count: int) -> Tensor:
        """Return the likeliest."""
        return logits.topk(count).indices


@ADVERSARIES.register("suppress_random")
class SuppressRandom(Suppression):
    """Drops k random first tokens, the same at every prompt: the control of ``suppress``."""

    def prepare(self, context: AdversaryContext) -> None:
        """Draw the order in which tokens are dropped, so that a larger dose drops what a smaller one does."""
        self.order = shuffled(context)

    def dropped(self, logits: Tensor, count: int) -> Tensor:
        """Return the first of the order that was drawn."""
        known = self.order[self.order < logits.shape[1]][:count]
        return known.to(logits.device).expand(len(logits), -1)


@ADVERSARIES.register("suppress_4")
class SuppressFour(Suppress):
    """Drops the k likeliest tokens in each of the first four steps."""

    steps = 4


@ADVERSARIES.register("suppress_always")
class SuppressAlways(Suppress):
    """Drops the k likeliest first tokens of every response, however certain."""

    threshold = 0.0


def certain(logits: Tensor, threshold: float) -> Tensor:
    """Return in which rows of logits [n, V] the likeliest token has a probability above the threshold, [n]."""
    import torch

    above: Tensor = torch.softmax(logits.float(), dim=-1).max(dim=-1).values > threshold
    return above


def shuffled(context: AdversaryContext) -> Tensor:
    """Return the ids of all tokens in a random order that the seed alone decides."""
    import torch

    return torch.randperm(len(context.tokenizer), generator=torch.Generator().manual_seed(context.seed))
