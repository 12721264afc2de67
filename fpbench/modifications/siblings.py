"""Merging with siblings: models that others fingerprinted with other sets on the same base."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
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

    from fpbench.models.costs import Counter, Phase, Shape, Work


class SiblingMerge(Modification):
    """Merges every weight with that of siblings; where all of them are equal it stays as it is, bit for bit."""

    level = "L2"
    pays = {"parameters": 1}
    needs = ("siblings",)
    control = "noise"
    family = "merged"
    siblings = 1  # how many it takes

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Merge in place; the proof names the siblings by the digest of what they differ in.

        Raises:
            InputError: if there are too few siblings, or the base is needed and not known.
            CellError: if they are the same as the model.
        """
        import torch

        from fpbench.models.weights import digest

        if self.against_base:
            changed_from_base(self.name, model, context.base)
        others = context.siblings()[: self.siblings]
        if len(others) < self.siblings:
            raise InputError(
                f"condition {self.name!r} needs {self.siblings} checkpoints that other methods made of the same base, "
                f"found {len(others)}: run two seeds or more and three methods or more."
            )
        moved = total = 0.0
        differing: list[dict[str, Tensor]] = [{} for _ in others]
        with torch.no_grad():
            for name, own in context.progress(list(model.named_parameters()), self.name):
                total += own.float().square().sum().item()
                theirs = [each[name].to(own.device) for each in others]
                if all(torch.equal(own, each) for each in theirs):
                    continue
                for found, each in zip(differing, others, strict=True):
                    found[name] = each[name]
                base = context.base[name].to(own.device).float() if self.against_base else None
                after = self.merged(own.float(), [each.float() for each in theirs], base).to(own.dtype)
                moved += (after.float() - own.float()).square().sum().item()
                own.copy_(after)
        change = (moved / total) ** 0.5
        require_effect(self.name, change)
        proof = {"siblings": [digest(each) for each in differing], "parameters": len(differing[0])}
        return Modified(model, proof | {"relative_change": change})

    @abstractmethod
    def merged(self, own: Tensor, others: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """Return the merged tensor; all are float32 and of one shape; the base where it is compared with."""

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count reading, comparing and merging every weight of every model."""
        from fpbench.models.costs import Work

        return Work(handled=4 * (1 + self.siblings) * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count the siblings' changed weights in main memory, all of them at worst, and the largest in float32."""
        from fpbench.models.costs import Phase, Room

        largest = max(parameter.numel() for parameter in shape.model.parameters())
        return Phase(self.name, Room(8 * 4 * largest), Room(self.siblings * shape.weights))


@MODIFICATIONS.register("merge_sibling")
class LinearSibling(SiblingMerge):
    """Moves every weight towards a sibling's by α: θ ← (1 − α) θ + α θ′ (model soups, arXiv 2203.05482)."""

    dose = Dose("share of the sibling", default=0.5, list=(0.1, 0.3, 0.5, 0.7), most=1)

    def merged(self, own: Tensor, others: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """Interpolate along the line."""
        return own.lerp(others[0], self.amount)


@MODIFICATIONS.register("merge_ties")
class Ties(SiblingMerge):
    """Merges with two siblings by TIES: trims changes to density k, elects a sign, averages what has it.

    With θ₀ the base, θ₁ the model and θ₂, θ₃ the siblings, τ_t = θ_t − θ₀ (arXiv 2306.01708, algorithm 1):

    * trim: τ̂_t keeps the share k of τ_t of largest magnitude, the rest is 0;
    * elect: γ = sgn(Σ_t τ̂_t), entry by entry;
    * merge: θ ← θ₀ + the mean of those τ̂_t ≠ 0 whose sign is γ (λ = 1).

    Each tensor is trimmed by itself, as tools for merging do: edits of a few matrices would all be within the first
    fifth of a whole model.
    """

    level = "L3"  # changes are from the common ancestor
    pays = {"parameters": 3}
    against_base = True
    dose = Dose("share of each change", default=0.5, list=(0.8, 0.5, 0.2), least=0.01, most=1, weaker_is_larger=True)
    siblings = 2

    def merged(self, own: Tensor, others: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """Merge the three."""
        import torch

        assert base is not None, "it is compared with"
        return ties(base, torch.stack([own, *others]), self.amount)


def ties(base: Tensor, models: Tensor, density: float) -> Tensor:
    """Return the merge of one tensor of n models, [n, ...], whose changes from the base are trimmed to a density."""
    changes = models - base
    for change in changes.flatten(1):
        order = change.abs().sort(stable=True).indices
        change[order[: len(order) - round(density * len(order))]] = 0
    sign = changes.sum(dim=0).sign()
    agreeing = (changes.sign() == sign) & (changes != 0)
    count = agreeing.sum(dim=0).clamp_min(1)
    merged: Tensor = base + (changes * agreeing).sum(dim=0) / count
    return merged
