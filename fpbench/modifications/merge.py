"""Merging with the unfingerprinted base: linear and spherical interpolation, tensor by tensor (protocol §3)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fpbench.errors import CellError
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationContext,
    Modified,
    changed_from_base,
    require_effect,
)
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

# Below this angle, in radians, sin(tΩ)/sin Ω equals t in double precision.
PARALLEL = 1e-8


class Merge(Modification):
    """Moves every weight towards the base; weights that are the base's already stay as they are, bit for bit."""

    against_base = True
    level = "L3"
    control = "noise"
    dose = Dose("share of the base", default=0.5, list=(0.1, 0.3, 0.5, 0.7), most=1)

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Merge in place.

        The proof's ``delta_left`` is ⟨W' − W₀, W − W₀⟩ / ‖W − W₀‖², the share of the model's distance from the base W₀
        that is left.

        Raises:
            InputError: if the base is not known, or is no base of this model.
            CellError: if the model is its own base, so that there is nothing to merge.
        """
        pairs = changed_from_base(self.name, model, context.base)
        total = sum(parameter.detach().float().square().sum().item() for parameter in model.parameters())
        moved = left = delta = 0.0
        for own, base in context.progress(pairs.values(), self.name):
            old, origin = own.double(), base.double()
            own.copy_(self.interpolate(old, origin))
            moved += (own.double() - old).square().sum().item()
            left += ((own.double() - origin) * (old - origin)).sum().item()
            delta += (old - origin).square().sum().item()
        change = (moved / total) ** 0.5
        require_effect(self.name, change)
        return Modified(model, {"weight": self.amount, "relative_change": change, "delta_left": left / delta})

    @abstractmethod
    def interpolate(self, own: Tensor, base: Tensor) -> Tensor:
        """Return the merged tensor; both are float64 and of one shape."""


@MODIFICATIONS.register("merge")
class Linear(Merge):
    """W ← (1 − w) W + w W₀."""

    def interpolate(self, own: Tensor, base: Tensor) -> Tensor:
        """Interpolate along the line."""
        return own.lerp(base, self.amount)


@MODIFICATIONS.register("merge_slerp")
class Spherical(Merge):
    """W ← (sin((1 − w)Ω) W + sin(wΩ) W₀) / sin Ω, with Ω the angle between the two tensors (Shoemake, 1985)."""

    dose = replace(Merge.dose, list=())  # the linear merge stands for both in the removal table

    def interpolate(self, own: Tensor, base: Tensor) -> Tensor:
        """Interpolate along the arc; where the tensors are parallel up to rounding, its limit for Ω → 0, the line.

        Raises:
            CellError: if the two point in opposite directions, between which there is no one arc.
        """
        weight, angle = self.amount, angle_between(own, base)
        if angle < PARALLEL:
            return own.lerp(base, weight)
        if math.pi - angle < PARALLEL:
            raise CellError(f"{self.name} met a tensor opposite to the base's: no one arc joins them.")
        return (math.sin((1 - weight) * angle) * own + math.sin(weight * angle) * base) / math.sin(angle)


def angle_between(first: Tensor, second: Tensor) -> float:
    """Return the angle in radians between two tensors seen as vectors, 0 where one of them is zero.

    Ω = 2 atan2(‖â − b̂‖, ‖â + b̂‖): the arc cosine of their product would lose the small angles of an injection.
    """
    lengths = first.norm(), second.norm()
    if not all(lengths):
        return 0.0
    a, b = first / lengths[0], second / lengths[1]
    return 2 * math.atan2((a - b).norm().item(), (a + b).norm().item())
