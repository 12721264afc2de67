"""SPF: fine-tuning by the owner that leaves the fingerprint's gradients alone (docs/methods.md §3.5).

Safety-preserving fine-tuning (arXiv 2601.10141) finds that gradients of safety lie in a subspace of low rank, and takes
what conflicts with it out of every step's gradient. Here the fingerprint stands in the place of safety.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fpbench.errors import CellError, InputError
from fpbench.modifications.base import ModificationContext, Modified
from fpbench.modifications.finetune import FineTune
from fpbench.modifications.gradients import gradients, low_rank, pairs_of, tokenised
from fpbench.modifications.matrices import matrices
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.training import LowRank


class SPF(FineTune):
    """Fine-tuning whose update ΔW = (α/r) B A keeps out of the span of U, the fingerprint's gradient directions.

    Of every matrix G = Σ_i G_i / ‖G_i‖ is taken once, before training, where G_i is the gradient of fingerprint i (mean
    log-odds of all its targets) and its norm is over all matrices; U [out, k] are the leading left singular directions
    of G. Each step's gradient of B becomes (1 − U Uᵀ) ∂L/∂B; what Adam, which scales single entries, brings into the
    span is taken out of B before the next step.
    """

    needs = ("fingerprints",)

    class Config(FineTune.Config):
        """Settings besides those of plain fine-tuning."""

        directions: int = Field(default=8, ge=1)  # k, of each matrix; ours

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Train in place; the proof has FSR before and after beside the losses, at the steps of plain fine-tuning.

        Raises:
            InputError: as plain fine-tuning, or if the fingerprint is not known.
            CellError: if LoRA adapts no matrix that has a gradient.
        """
        if not context.fingerprints:
            raise InputError(f"condition {self.name!r} spares a fingerprint, which is not known here: give its set.")
        before = [context.fsr(model)] if context.fsr else []
        spare = Sparing(fingerprint_directions(model, tokenizer, context, self.config.directions))
        modified = self.train(model, tokenizer, context, before_step=spare)
        after = [context.fsr(modified.model)] if context.fsr else []
        return Modified(modified.model, modified.proof | spare.proof() | {"fsr": before + after})


@MODIFICATIONS.register("spf_alpaca")
class SPFAlpaca(SPF):
    """SPF on general instructions (Alpaca-cleaned)."""

    data = ("alpaca",)


@MODIFICATIONS.register("spf_math")
class SPFMath(SPF):
    """SPF on mathematical instructions (MathInstruct)."""

    data = ("math",)


def fingerprint_directions(
    model: nn.Module, tokenizer: Any, context: ModificationContext, count: int
) -> dict[str, Tensor]:
    """Return U [out, k] of every matrix of the blocks, by the name of its module."""
    from fpbench.models.layout import as_matrix

    total: dict[str, Tensor] = {}
    for each in context.progress(context.fingerprints, "gradients of the fingerprint"):
        found = gradients(model, tokenised(tokenizer, pairs_of([each])), matrices(model))
        size = sum(gradient.square().sum().item() for gradient in found.values()) ** 0.5
        for name, gradient in found.items():
            total[name] = total.get(name, 0) + gradient / size
    return {
        name.removesuffix(".weight"): low_rank(as_matrix(model, name, gradient), count)[0]
        for name, gradient in total.items()
    }


class Sparing:
    """Takes what lies in the span of U out of every update, before each step of a training."""

    def __init__(self, directions: Mapping[str, Tensor]) -> None:
        """Take U [out, k] by module name."""
        self.directions = directions
        self.shares: list[Tensor] = []  # of ‖∂L/∂B‖² that was removed, for each step
        self.spared: list[str] = []

    def __call__(self, updates: Mapping[str, LowRank]) -> None:
        """Project gradients and updates.

        Raises:
            CellError: if none is of a matrix that has directions.
        """
        import torch

        self.spared = sorted(updates.keys() & self.directions.keys())
        if not self.spared:
            raise CellError("SPF spares the gradients of a fingerprint, and LoRA adapts none of its matrices.")
        removed, whole = [], []
        with torch.no_grad():
            for name in self.spared:
                left, update = self.directions[name], updates[name]  # (out, k)
                assert update.b.grad is not None, "a backward pass came before"
                inside = left @ (left.T @ update.b.grad)  # (out, rank)
                removed.append(inside.square().sum())
                whole.append(update.b.grad.square().sum())
                update.b.grad.sub_(inside)
                update.b.sub_(left @ (left.T @ update.b))
        self.shares.append(torch.stack(removed).sum() / torch.stack(whole).sum())

    def proof(self) -> dict[str, Any]:
        """Return how many matrices were spared, in how many directions, and the share of gradients that was removed."""
        shares = [each.item() for each in self.shares]
        return {
            "spared": len(self.spared),
            "directions": sum(self.directions[name].shape[1] for name in self.spared),
            "gradient_removed": sum(shares) / len(shares),
        }
