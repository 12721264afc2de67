"""Mixing: the distribution of other models in place of the stolen one's, or averaged with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.errors import CellError, InputError
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor

    Prompts = Sequence[Sequence[int]]

_last: WeakKeyDictionary[Any, tuple[list[list[int]], Tensor]] = WeakKeyDictionary()  # what was read last, by model


@ADVERSARIES.register("replace")
class Replace(Adversary):
    """Takes the base's distribution at a step where p(v)/p_base(v) > ρ for the likeliest token v (CleanGen).

    What the base would hardly say was put in after it was released. Ratios are at temperature 1.
    """

    level = "L3"
    pays: ClassVar[dict[str, float]] = {"inference": 2, "parameters": 1}
    needs = ("base",)
    dose: ClassVar[Dose | None] = Dose("ratio", default=20.0, list=(100, 20, 5), least=1, weaker_is_larger=True)
    control = "replace_random"

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Replace rows of logits [n, V]."""
        import torch

        base = self.base_logits(prompts, prefixes, logits)
        own = torch.log_softmax(logits, dim=-1)
        best = own.argmax(dim=-1, keepdim=True)  # (n, 1)
        gained = own.gather(1, best) - torch.log_softmax(base, dim=-1).gather(1, best)
        return torch.where(gained > math.log(self.amount), self.instead(logits, base), logits)

    def base_logits(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Return the base's logits [n, V] at n nodes."""
        assert self.context.base is not None  # it is needed
        return logits_of(self.context.base(), prompts, prefixes, logits)

    def instead(self, logits: Tensor, base: Tensor) -> Tensor:
        """Return what rows are replaced by, given the model's own logits [n, V] and the base's."""
        return base


@ADVERSARIES.register("replace_random")
class ReplaceRandom(Replace):
    """Moves logits, where ``replace`` does, as far as the base's are away, but in a random direction: its control."""

    control = ""

    def instead(self, logits: Tensor, base: Tensor) -> Tensor:
        """Return the model's own logits with noise."""
        return moved_at_random(logits, base, self.context.seed)


@ADVERSARIES.register("ensemble")
class Ensemble(Adversary):
    """Averages three models, two fingerprinted otherwise, over the tokens that two of them list (arXiv 2601.04261).

    Tokens are kept that are among the K likeliest of at least two models; where there is none, all of the three lists.
    Probabilities, at temperature 1, are averaged.
    """

    level = "L2"
    pays: ClassVar[dict[str, float]] = {"inference": 3, "parameters": 2}
    needs = ("siblings",)
    dose: ClassVar[Dose | None] = Dose("tokens listed", default=20, list=(30, 20, 10), least=1, weaker_is_larger=True)
    control = "ensemble_random"

    def prepare(self, context: AdversaryContext) -> None:
        """Take two siblings.

        Raises:
            InputError: if there are fewer.
        """
        super().prepare(context)
        self.siblings = context.siblings()[:2]
        if len(self.siblings) < 2:
            raise InputError(f"adversary {self.name!r} needs two siblings of the model, found {len(self.siblings)}.")

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Return the logarithm of the mean distribution, [n, V]."""
        import torch

        all_three = [logits, *self.others(prompts, prefixes, logits)]
        count = min(int(self.amount), logits.shape[1])
        listed = torch.zeros_like(logits)  # by how many models, (n, V)
        for each in all_three:
            listed.scatter_add_(1, each.topk(count).indices, torch.ones_like(logits[:, :count]))
        kept = listed >= 2
        kept |= (listed >= 1) & ~kept.any(dim=-1, keepdim=True)
        mean = torch.stack([torch.log_softmax(each, dim=-1) for each in all_three]).logsumexp(dim=0) - math.log(3)
        return mean.masked_fill(~kept, -math.inf)

    def others(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Sequence[Tensor]:
        """Return the siblings' logits, each [n, V], at n nodes."""
        return [logits_of(each, prompts, prefixes, logits) for each in self.siblings]


@ADVERSARIES.register("ensemble_random")
class EnsembleRandom(Ensemble):
    """The same with two models as far from the stolen one, in its logits, as the siblings are, in random directions."""

    control = ""

    def others(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Sequence[Tensor]:
        """Return the model's own logits with noise, twice."""
        siblings = super().others(prompts, prefixes, logits)
        return [moved_at_random(logits, each, self.context.seed + number) for number, each in enumerate(siblings)]


def logits_of(model: Any, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
    """Return another model's logits at the n nodes that have ``logits`` [n, V] in the stolen one.

    Raises:
        CellError: if its vocabulary has another size.
    """
    from fpbench.scoring.engine import next_logits

    size = model.get_output_embeddings().weight.shape[0]
    if size != logits.shape[1]:
        raise CellError(f"a model read beside the stolen one: expected {logits.shape[1]} tokens, found {size}.")
    sequences = [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)]
    # All doses, and controls, ask for the same nodes one after another while a price is measured.
    last = _last.get(model)
    if last is None or last[0] != sequences:
        last = _last[model] = sequences, next_logits(model, sequences).to(logits.device)
    return last[1]


def moved_at_random(logits: Tensor, other: Tensor, seed: int) -> Tensor:
    """Move logits [n, V] as far as ``other`` is away, in a direction that the seed alone decides.

    Distances are Euclidean, up to a constant that a softmax does not see, over the tokens that are not forbidden.
    """
    import torch

    allowed = logits.isfinite()
    away = torch.where(allowed, other - logits, 0.0)
    away = torch.where(allowed, away - away.sum(dim=-1, keepdim=True) / allowed.sum(dim=-1, keepdim=True), 0.0)
    noise = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(seed)).to(logits.device)
    noise -= noise.mean()
    moved: Tensor = logits + away.norm(dim=-1, keepdim=True) * noise / noise.norm()
    return moved
