"""FSFT: fine-tuning by the owner that spares the fingerprint's subspace (docs/methods.md §3.2).

The fingerprint's subspace is read off D^i = W_e^i − W^i, the difference between fingerprinted and unfingerprinted
weights of every matrix i that the injection touched. λ Σ_i F^i is added to each step's loss, where F^i measures how far
the update ΔW^i = (α/r) B A reaches into it; see :func:`reach`. The exact F^i of the paper is not public; the four here
are reconstructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fpbench.errors import CellError
from fpbench.modifications.base import ModificationContext, Modified, changed_from_base
from fpbench.modifications.finetune import FineTune
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.training import LowRank

Variant = Literal["A", "A_orthogonal", "B", "C"]


class FSFT(FineTune):
    """Fine-tuning with the penalty λ Σ_i F^i / ‖W^i‖_F²."""

    against_base = True

    class Config(FineTune.Config):
        """Settings besides those of plain fine-tuning."""

        variant: Variant = "A"  # which F^i
        # λ. On stories3M 1e4 cuts the update inside the subspace to a fifth or less (A) or a tenth or less
        # (A_orthogonal, B) at no loss, 1 does nothing, and C needs 1e8; with A and C that depends
        # on the size of the delta. A hundred times more disturbs the training.
        strength: float = Field(default=1e4, gt=0)

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Train in place.

        Raises:
            InputError: as plain fine-tuning, or if the base is not known, or is no base of this model.
            CellError: if LoRA adapts none of the matrices that the injection touched: the penalty would be zero.
        """
        from fpbench.models.layout import as_matrix

        changed = changed_from_base(self.name, model, context.base)
        touched = {
            name: (as_matrix(model, name, own), as_matrix(model, name, base)) for name, (own, base) in changed.items()
        }
        penalty = SubspacePenalty(touched, self.config.variant, self.config.strength)
        modified = self.train(model, tokenizer, context, penalty)
        return Modified(model, modified.proof | penalty.proof(self.config.epochs))


@MODIFICATIONS.register("fsft_alpaca")
class FSFTAlpaca(FSFT):
    """FSFT on general instructions (Alpaca-cleaned)."""

    data = ("alpaca",)


@MODIFICATIONS.register("fsft_math")
class FSFTMath(FSFT):
    """FSFT on mathematical instructions (MathInstruct)."""

    data = ("math",)


class SubspacePenalty:
    """λ Σ_i F^i / ‖W^i‖_F² over the touched matrices that LoRA adapts; called once a step, it keeps every value."""

    def __init__(self, touched: Mapping[str, tuple[Tensor, Tensor]], variant: Variant, strength: float) -> None:
        """Take the touched parameters: name → (fingerprinted, unfingerprinted)."""
        self.touched, self.variant, self.strength = touched, variant, strength
        self.values: list[Tensor] = []
        self._terms: dict[str, Callable[[LowRank], Tensor]] = {}

    def __call__(self, updates: Mapping[str, LowRank]) -> Tensor:
        """Return the penalty of this step's updates.

        Raises:
            CellError: if none of them is of a touched matrix.
        """
        import torch

        if not self._terms:
            touched = {name.removesuffix(".weight"): pair for name, pair in self.touched.items()}
            # F^i / ‖W^i‖_F² of every touched matrix that is adapted, by module name
            self._terms = {name: reach(self.variant, *pair) for name, pair in touched.items() if name in updates}
            if not self._terms:
                raise CellError(
                    "FSFT protects the matrices that the injection touched, and LoRA adapts none of them "
                    f"({', '.join(sorted(self.touched)[:3])}): its penalty would be zero throughout."
                )
        value = self.strength * torch.stack([term(updates[name]) for name, term in self._terms.items()]).sum()
        self.values.append(value.detach())
        return value

    def proof(self, epochs: int) -> dict[str, Any]:
        """Return what was protected, and the penalty before the first and before the last step of every epoch."""
        values = [value.item() for value in self.values]
        steps = len(values) // epochs
        return {
            "variant": self.variant,
            "strength": self.strength,
            "protected": sorted(self._terms),
            "unprotected": sorted(name for name in self.touched if name.removesuffix(".weight") not in self._terms),
            "penalty": [[values[step], values[step + steps - 1]] for step in range(0, len(values), steps)],
        }


def reach(variant: Variant, own: Tensor, base: Tensor) -> Callable[[LowRank], Tensor]:
    """Return F / ‖W‖_F² as a function of the update ΔW = s B A, for one matrix [out, in].

    With D = W_e − W, ``own`` less ``base``, ≈ U S Vᵀ (see :func:`spectrum`):

    * ``A``: F = ‖Ĉ ΔW‖_F², Ĉ = D Dᵀ / ‖D‖_F = U S² Uᵀ / ‖S‖
    * ``A_orthogonal``: F = ‖U Uᵀ ΔW‖_F²
    * ``B``: F = ‖ΔW V‖_F²
    * ``C``: F = ‖D ⊙ ΔW‖_F², which needs ΔW itself: factors of the product, of rank k · r, would cost more.
    """
    size = base.float().square().sum()
    if variant == "C":
        delta = own.float() - base.float()
        return lambda update: (delta * (update.b @ update.a)).square().sum() * update.scale**2 / size
    left, values, right = spectrum(own, base)
    if variant == "B":
        return lambda update: (update.b @ (update.a @ right)).square().sum() * update.scale**2 / size
    if variant == "A":
        left = left * (values.square() / values.norm())
    return lambda update: ((left.T @ update.b) @ update.a).square().sum() * update.scale**2 / size


def spectrum(own: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [out, k], S [k] and V [in, k] of D = W_e − W, without what rounding alone could have made.

    Rounding W_e to its dtype adds noise of standard deviation ε · rms(W_e) / √12 at most, whose largest singular value
    is that times √out + √in; computing in float32 blurs the rest. The largest singular value is always kept.
    """
    import torch

    # (out, k), (k,), (k, in) with k = min(out, in)
    left, values, right = torch.linalg.svd(own.float() - base.float(), full_matrices=False)
    deviation = torch.finfo(own.dtype).eps * own.float().square().mean().sqrt() / 12**0.5
    noise = deviation * sum(size**0.5 for size in own.shape)
    blur = torch.finfo(torch.float32).eps * max(own.shape) * values[0]
    rank = max(1, int((values > torch.maximum(noise, blur)).sum()))
    return left[:, :rank], values[:rank], right[:rank].T
