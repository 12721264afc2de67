"""The heads and FFN filters of a model: how much each matters for some answers, and a greedy choice among them.

After MAPE-Unlearn (arXiv 2508.17233): a mask m over heads and filters multiplies what goes into the matrices through
which they write; its Fisher information is I = Σ_n g_n g_nᵀ, with g_n = ∂L_n/∂m of the n-th example at m = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Outlet:
    """A matrix through which the heads or the filters of one block write."""

    name: str  # of its module
    kind: str  # "heads" or "filters"
    width: int  # inputs of each of them: the size of a head, or 1
    count: int  # how many there are


def outlets(model: nn.Module) -> list[Outlet]:
    """Return the output projections of attention and FFN of every block.

    Raises:
        InputError: if a block's attention has no output projection that its heads share evenly.
    """
    from fpbench.models.layout import ATTENTION, LINEAR, inputs, layout, outputs

    found, made = layout(model), []
    heads, hidden = int(found.config.num_attention_heads), int(found.config.hidden_size)
    for number, block in enumerate(found.blocks):
        inside = [name for name, each in block.named_modules() if ATTENTION.search(type(each).__name__)]
        linear = {name: each for name, each in block.named_modules() if isinstance(each, LINEAR)}
        writing = [
            name
            for name, each in linear.items()
            if outputs(each) == hidden and any(name.startswith(f"{one}.") for one in inside)
        ]
        if not writing or inputs(linear[writing[-1]]) % heads:
            raise InputError(f"{found.name}.{number} has no output projection that its {heads} heads share evenly.")
        wide = inputs(linear[writing[-1]])
        made.append(Outlet(f"{found.name}.{number}.{writing[-1]}", "heads", wide // heads, heads))
        down = found.ffn(number).down
        made.append(Outlet(f"{found.name}.{number}.{down}", "filters", 1, inputs(linear[down])))
    return made


def influence(model: nn.Module, places: Sequence[Outlet], losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return ∂L_n/∂m at m = 1 for n losses, by kind: [n, units], float32, the units of all outlets in order."""
    import torch

    device = next(model.parameters()).device
    masks = [torch.ones(each.count, device=device, requires_grad=True) for each in places]
    rows: list[Sequence[Tensor]] = []

    def scaled(mask: Tensor, width: int) -> Callable[[Any, tuple[Tensor]], tuple[Tensor]]:
        return lambda _, given: ((given[0].float() * mask.repeat_interleave(width)).to(given[0].dtype),)

    with ExitStack() as hooks, torch.enable_grad():
        for mask, each in zip(masks, places, strict=True):
            module = model.get_submodule(each.name)
            hooks.enter_context(module.register_forward_pre_hook(scaled(mask, each.width)))
        rows += [torch.autograd.grad(loss(), masks) for loss in losses]
    kinds = dict.fromkeys(each.kind for each in places)
    return {
        kind: torch.stack(
            [torch.cat([found for found, each in zip(row, places, strict=True) if each.kind == kind]) for row in rows]
        )
        for kind in kinds
    }


def greedy(wanted: Tensor, spared: Tensor, count: int) -> Tensor:
    """Return the numbers of ``count`` units that matter for some examples and not for others.

    With G_f [n, U] ``wanted`` and G_r [m, U] ``spared``, each scaled so that Σ G² = 1, the set S is to have a large
    Q(S) = ‖Σ_S G_f‖² − ‖Σ_S G_r‖². The half with the largest Q({u}) is taken first; then one by one the unit that adds
    most.
    """
    import torch

    def unit(matrix: Tensor) -> Tensor:
        scaled: Tensor = matrix / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
        return scaled

    wanted, spared = unit(wanted), unit(spared)
    alone = wanted.square().sum(0) - spared.square().sum(0)  # (U,)
    chosen = alone.topk(count - count // 2).indices
    free = torch.ones(len(alone), dtype=torch.bool, device=alone.device)
    free[chosen] = False
    sums = wanted[:, chosen].sum(1), spared[:, chosen].sum(1)
    order = chosen.tolist()
    while len(order) < count:
        gain = alone + 2 * (sums[0] @ wanted - sums[1] @ spared)
        best = int(gain.masked_fill(~free, float("-inf")).argmax())
        free[best] = False
        order.append(best)
        sums = sums[0] + wanted[:, best], sums[1] + spared[:, best]
    return torch.tensor(sorted(order), device=alone.device)
