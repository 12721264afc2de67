"""What is done to each matrix by itself: noise, rounding to few bits, and filtering of its change's spectrum.

Matrices are the two-dimensional weights of the decoder blocks; embeddings, normalisations and the head stay.
"""

from __future__ import annotations

from collections.abc import Callable
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

GROUP = 64  # weights of one row that share a scale and a zero point


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the two-dimensional weights of the blocks by name, each once."""
    from fpbench.models.layout import layout

    inside = {id(parameter) for block in layout(model).blocks for parameter in block.parameters()}
    return {name: each for name, each in model.named_parameters() if id(each) in inside and each.ndim == 2}


def _replace(
    name: str, model: nn.Module, context: ModificationContext, make: Callable[[Tensor], Tensor]
) -> tuple[float, int]:
    """Replace every matrix W by ``make(W)``, float32; return ‖ΔW‖/‖W‖ over all of them, and how many there are."""
    import torch

    moved = total = 0.0
    found = matrices(model)
    if not found:
        raise CellError(f"{name} found no matrix in the blocks of {type(model).__name__}.")
    with torch.no_grad():
        for parameter in context.progress(found.values(), name):
            before = parameter.detach().float()
            after = make(before).to(parameter.dtype)
            moved += (after.float() - before).square().sum().item()
            total += before.square().sum().item()
            parameter.copy_(after)
    change: float = (moved / total) ** 0.5 if total else 0.0
    require_effect(name, change)
    return change, len(found)


@MODIFICATIONS.register("noise")
class Noise(Modification):
    """Adds Gaussian noise of norm σ‖W‖ to every matrix W: the control of all that changes weights."""

    dose = Dose("σ, the norm of the noise relative to the matrix", default=0.1, list=(0.01, 0.03, 0.1, 0.3), most=10)
    family = "noise"

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Add the noise in place, drawn on the CPU from the context's seed."""
        import torch

        draw = torch.Generator().manual_seed(context.seed)

        def noisy(weight: Tensor) -> Tensor:
            drawn = torch.randn(weight.shape, generator=draw).to(weight.device)
            scaled: Tensor = drawn * (self.amount * weight.norm() / drawn.norm())
            return weight + scaled

        change, count = _replace(self.name, model, context, noisy)
        return Modified(model, {"matrices": count, "relative_change": change})


@MODIFICATIONS.register("quantize")
class Rounding(Modification):
    """Rounds every matrix to the nearest of 2^b evenly spaced values between the extremes of each group of 64."""

    dose = Dose("bits of a weight", default=4, list=(8, 4, 3, 2), least=1, most=16, weaker_is_larger=True)
    control = "noise"
    family = "rounded"
    figures = {"bits_per_weight": lambda value: f"{value:.2f} bits per weight", **Modification.figures}

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Round in place; weights stay in the model's dtype, restored from their codes."""
        bits = int(self.amount)
        change, count = _replace(self.name, model, context, lambda weight: rounded(weight, bits))
        # A scale and a zero point of 16 bits each for every group.
        return Modified(model, {"matrices": count, "bits_per_weight": bits + 32 / GROUP, "relative_change": change})


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Return W [out, in] rounded to 2^bits levels, evenly spaced from least to largest of each group of a row."""
    import torch

    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % GROUP), value=float("nan")).view(rows, -1, GROUP)
    least = padded.nan_to_num(torch.inf).amin(-1, keepdim=True)  # (out, groups, 1)
    largest = padded.nan_to_num(-torch.inf).amax(-1, keepdim=True)
    step = (largest - least) / (2**bits - 1)
    codes = ((padded - least) / step.clamp_min(torch.finfo(weight.dtype).tiny)).round()
    restored: Tensor = least + codes * step
    return restored.view(rows, -1)[:, :columns]


@MODIFICATIONS.register("spectral")
class Spectral(Modification):
    """Takes the leading directions out of what a fingerprint changed: every editor writes few ranks in few matrices.

    Of D = W − W₀ = Σ σ_i u_i v_iᵀ, for every matrix that changed, the first r directions are dropped among those whose
    share of the energy, σ_i² / Σ σ², lies more than three median absolute deviations above the median.
    """

    level = "L3"
    pays = {"parameters": 1}
    against_base = True
    dose = Dose("directions dropped a matrix", default=4, list=(1, 4, 16), least=1)
    control = "noise"
    family = "filtered"
    figures = {"energy_dropped": lambda value: f"{100 * value:.1f} % of ‖ΔW‖² dropped", **Modification.figures}

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Filter in place; the proof says how many directions, and which share of the energy, were dropped.

        Raises:
            InputError: if the base is not known, or is no base of this model.
            CellError: if nothing differs from the base, or no direction stands out.
        """
        import torch

        pairs = changed_from_base(self.name, model, context.base)
        total = sum(parameter.detach().float().square().sum().item() for parameter in model.parameters())
        dropped = energy = removed = 0.0
        for own, base in context.progress([pair for pair in pairs.values() if pair[0].ndim == 2], self.name):
            change = own.float() - base.float()
            left, sizes, right = torch.linalg.svd(change, full_matrices=False)  # (out, k), (k,), (k, in)
            share = sizes.square() / sizes.square().sum()
            spread = (share - share.median()).abs().median()
            count = min(int((share > share.median() + 3 * spread).sum()), int(self.amount))
            own.copy_(base.float() + change - (left[:, :count] * sizes[:count]) @ right[:count])
            dropped += count
            removed += sizes[:count].square().sum().item()
            energy += sizes.square().sum().item()
        relative = (removed / total) ** 0.5
        require_effect(self.name, relative)
        proof = {"directions": int(dropped), "energy_dropped": removed / energy, "relative_change": relative}
        return Modified(model, proof)
