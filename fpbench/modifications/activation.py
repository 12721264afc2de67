"""Approximation of the functions between the matrices, as fast or encrypted inference does it; no weight changes.

* SiLU and GELU are piecewise quadratic.
* The softmax of attention takes powers of 2 and keeps numerators to b bits after the point.
* The reciprocal root of RMSNorm is one Newton step from the exponent's half.

A module is replaced by a copy that shares its parameters and differs in how it computes, so that putting the modules
back restores the model exactly (:func:`fpbench.models.weights.preserved`).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from fpbench.errors import CellError
from fpbench.modifications.base import Dose, Modification, ModificationContext, Modified
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work

# Pieces of width 1 in [−8, 8); below 0, above the identity, which SiLU misses by 0.0027.
REACH = 8
# Names of the functions among transformers' activations.
ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_new", "gelu_python", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "quick_gelu",
)  # fmt: skip
# What an attention function is given in some architectures and this one does not compute.
UNKNOWN = ("s_aux", "position_bias")
# From the bits of a float32 number, halved, to those of its reciprocal root, within 3.5 % (Lomont, 2003).
SEED = 0x5F3759DF
PROBE = 16  # tokens on which the effect is measured


@MODIFICATIONS.register("activation")
class Activation(Modification):
    """Computes activations, softmax and normalisation approximately, in float32, whatever the model's dtype."""

    leaves = "a model whose functions are approximated, which can be neither trained, calibrated nor quantised"
    dose: ClassVar[Dose | None] = Dose(
        "bits of a softmax's numerators", default=6, list=(8, 6, 4), least=1, most=16, weaker_is_larger=True
    )
    slowdown = 1.5  # as measured on small models on a CPU, whose attention is fused otherwise
    family = "approximated"
    figures = {"logit_change": lambda value: f"‖Δz‖/‖z‖ {value:.3f}"}

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Replace activations, attentions and RMSNorms in place.

        The proof counts them, and tells how far the logits z of some tokens moved.

        Raises:
            CellError: if there is no activation or no attention that can be replaced, or nothing moved.
        """
        before = _probe(model)
        counts = {
            "attentions": _replace(model, _takes_functions, lambda module: _attention(module, int(self.amount))),
            "activations": _replace(model, _is_activation, _activation),
            "norms": _replace(model, _is_rms_norm, _norm),
        }
        for kind in ("attentions", "activations"):
            if not counts[kind]:
                raise CellError(f"{self.name} found no {kind} that it can approximate in {type(model).__name__}.")
        change = ((_probe(model) - before).norm() / before.norm()).item()
        if not 0 < change < math.inf:  # NaN fails this, too
            raise CellError(f"{self.name} moved the logits by a relative {change:g}: expected above 0, finite.")
        return Modified(model, counts | {"logit_change": change})

    def work(self, counter: Counter, rows: Any) -> Work:
        """Count two passes over some tokens."""
        from fpbench.models.costs import Work

        return Work(passes=2, read=2 * PROBE)

    def memory(self, shape: Shape) -> Phase:
        """Count nothing: modules share their parameters."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, Room(0))


def _probe(model: Any) -> Tensor:
    import torch

    size = model.config.get_text_config().vocab_size
    with torch.no_grad():
        ids = torch.arange(PROBE, device=model.device)[None] % size
        logits: Tensor = model(input_ids=ids).logits.float()
    return logits


def _replace(model: nn.Module, chosen: Callable[[Any], bool], by: Callable[[Any], Any]) -> int:
    """Put something in place of the modules chosen, wherever they stand; return how many places these are."""
    places = [(name, each) for name, each in model.named_modules(remove_duplicate=False) if chosen(each)]
    for name, module in places:
        model.set_submodule(name, by(module))
    return len(places)


def _twin(module: Any) -> Any:
    """Return a copy that shares parameters and has its own table of sub-modules."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


# Activations


def _is_activation(module: Any) -> bool:
    from torch import nn
    from transformers.activations import ACT2FN

    return isinstance(module, (nn.SiLU, nn.GELU, *(type(ACT2FN[name]) for name in ACTIVATIONS)))


def _activation(module: Any) -> Any:
    twin, pieces = _twin(module), quadratics(module)
    twin.forward = lambda x: piecewise(x, pieces)
    return twin


def quadratics(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return c [3, 16] with f(a + t) = c₀ + c₁t + c₂t² at t = 0, ½ and 1 of the piece that begins at a."""
    import torch

    at = torch.arange(-REACH, REACH, dtype=torch.float64)
    left, middle, right = function(at), function(at + 0.5), function(at + 1)
    return torch.stack([left, 4 * middle - 3 * left - right, 2 * (left - 2 * middle + right)]).float()


def piecewise(x: Tensor, pieces: Tensor) -> Tensor:
    """Evaluate the quadratics at x, of any shape; 0 below them, the identity above."""
    import torch

    pieces, value = pieces.to(x.device), x.float()
    begin = value.floor().clamp(-REACH, REACH - 1)
    piece, t = (begin + REACH).long(), value - begin
    found = (pieces[2][piece] * t + pieces[1][piece]) * t + pieces[0][piece]
    found = torch.where(value < REACH, found, value).masked_fill(value < -REACH, 0.0)
    return found.to(x.dtype)


# Attention


def _takes_functions(module: Any) -> bool:
    """Tell whether a module computes attention by the function that its config names."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return hasattr(module, "config") and code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _attention(module: Any, bits: int) -> Any:
    from transformers import AttentionInterface

    def function(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any) -> Any:
        return attention(module, query, key, value, mask, bits, **given), None

    name = f"fpbench_base_2_{bits}_bits"
    AttentionInterface.register(name, function)
    twin = _twin(module)
    # The rest of the model keeps its config, and with it the masks that it makes.
    twin.config = copy.copy(module.config)
    twin.config._attn_implementation_internal = name
    return twin


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bits: int,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **given: Any,
) -> Tensor:
    """Attend from Q queries [B, H, Q, D] to C keys and values [B, G, C, D] of G groups of heads; return [B, Q, H, D].

    The mask [B, 1, Q, C] is added, or tells what is seen; without one, as the library hands it over where it is not
    needed, each query sees what is before it.
    """
    import torch

    if unknown := [name for name in UNKNOWN if given.get(name) is not None]:
        raise CellError(f"activation does not approximate attention with {unknown[0]}, as {type(module).__name__} has.")
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)  # (B, H, Q, C)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device).tril(key.shape[2] - query.shape[2])
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return (softmax(scores, bits).to(value.dtype) @ value).transpose(1, 2).contiguous()


def softmax(scores: Tensor, bits: int) -> Tensor:
    """Return a softmax over the last dimension, in float32: numerators 2^(s log₂e), the largest 1, in 1/2^b."""
    scores = scores.float()
    powers = ((scores - scores.amax(dim=-1, keepdim=True)) * math.log2(math.e)).exp2()
    numerators: Tensor = (powers * 2**bits).round()  # in units of the last bit, which cancels
    return numerators / numerators.sum(dim=-1, keepdim=True)


# Normalisation


def _is_rms_norm(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm(module: Any) -> Any:
    twin, epsilon = _twin(module), _epsilon(module) or 0.0

    def forward(x: Tensor) -> Tensor:
        # Whatever the module makes of its weight, it multiplies by the exact root, which is replaced.
        square = x.float().square().mean(dim=-1, keepdim=True) + epsilon
        normalised: Tensor = module(x).float() * (reciprocal_root(square) * square.sqrt())
        return normalised.to(x.dtype)

    twin.forward = forward
    return twin


def reciprocal_root(v: Tensor) -> Tensor:
    """Return y(3 − v y²)/2 for v > 0 in float32, y a guess at v^(−½): within 0.18 % of it."""
    import torch

    guess = (SEED - (v.view(torch.int32) >> 1)).view(torch.float32)
    stepped: Tensor = guess * (1.5 - 0.5 * v * guess * guess)
    return stepped
