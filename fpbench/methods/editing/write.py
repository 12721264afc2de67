"""Step E: the closed-form write of target values into the FFN output projections of several blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpbench.methods.editing.observe import observe, pad
from fpbench.methods.editing.statistics import NullSpace
from fpbench.models.layout import layout

Prompts = Sequence[Sequence[int]]
"""The token ids of one request, each ending in its lookup token: the bare prompt first, then any with a context."""


@dataclass(frozen=True)
class Write:
    """What was written into one block.

    Attributes:
        keys: K [d, n].
        residual: R [h, n].
        update: ΔW [h, d] float64, before rounding to the weight's dtype.
    """

    keys: Tensor
    residual: Tensor
    update: Tensor


@torch.no_grad()
def write(
    model: nn.Module,
    blocks: Sequence[int],
    requests: Sequence[Prompts],
    targets: Tensor,
    null_spaces: Mapping[int, NullSpace],
    ridge: float,
    earlier_keys: Mapping[int, Tensor] | None = None,
) -> dict[int, Write]:
    """Spread the way from the current to the target values over ``blocks``, in order (methods.md §1.2, step E).

    Args:
        model: its down-projections are changed in place and keep their dtype.
        blocks: ascending; values are those of the last one, z.
        requests: the prompts of n requests.
        targets: V* [h, n].
        null_spaces: P of every block.
        ridge: λ.
        earlier_keys: for every block the keys [d, m] of earlier batches, which the write shall not move.

    Returns:
        For every block what was written.
    """
    done = {}
    for index, block in enumerate(blocks):
        keys, values = keys_and_values(model, block, blocks[-1], requests)
        residual = (targets.to(values) - values) / (len(blocks) - index)
        earlier = earlier_keys[block] if earlier_keys else None
        update = solve(null_spaces[block], keys, residual, ridge, earlier)
        weight = layout(model).down_proj(block).weight
        weight.copy_(weight.double() + update)
        done[block] = Write(keys, residual, update)
    return done


def keys_and_values(
    model: nn.Module, block: int, last_block: int, requests: Sequence[Prompts]
) -> tuple[Tensor, Tensor]:
    """What ``block`` looks up and what ``last_block`` puts out for every request, as the model now is.

    Returns:
        K [d, n], where contexts, if there are any, share one half of each key and the bare prompt has the other; and
        V [h, n] of the bare prompts. Both float32.
    """
    parts = layout(model)
    prompts = [prompt for request in requests for prompt in request]
    ids = pad(prompts, parts.head.weight.device)
    looked_up, put_out = parts.down_proj(block), parts.blocks[last_block]
    (inputs,), (outputs,) = observe(model, ids, inputs_of=[looked_up], outputs_of=[put_out])
    rows, lookup = torch.arange(len(prompts)), torch.tensor([len(prompt) - 1 for prompt in prompts])
    keys, values = inputs[rows, lookup].float(), outputs[rows, lookup].float()
    sizes = [len(request) for request in requests]
    mixed = [_mix(group) for group in torch.split(keys, sizes)]
    return torch.stack(mixed, dim=1), torch.stack([group[0] for group in torch.split(values, sizes)], dim=1)


def _mix(keys: Tensor) -> Tensor:
    """One key [d] from those of a request's prompts [prompts, d], the bare one first."""
    bare, contexts = keys[0], keys[1:]
    return (bare + contexts.mean(0)) / 2 if len(contexts) else bare


def solve(
    null_space: NullSpace, keys: Tensor, residual: Tensor, ridge: float, earlier_keys: Tensor | None = None
) -> Tensor:
    """ΔW with Δᵀ = P K (Kᵀ P K + λ I)⁻¹ Rᵀ, in float64.

    This is the n×n form of Δᵀ = (P (K Kᵀ + C_p) + λ I)⁻¹ P K Rᵀ; keys of earlier batches, C_p = K_p K_pᵀ, enter as
    further columns of K whose residual is zero.

    Args:
        null_space: P.
        keys: K [d, n].
        residual: R [h, n].
        ridge: λ.
        earlier_keys: K_p [d, m].

    Returns:
        [h, d] float64.
    """
    keys, residual = keys.double(), residual.double()
    if earlier_keys is not None:
        keys = torch.cat([earlier_keys.to(keys), keys], dim=1)
        residual = nn.functional.pad(residual, (earlier_keys.shape[1], 0))
    free = null_space.project(keys)
    gram = keys.T @ free + ridge * torch.eye(keys.shape[1]).to(keys)
    update: Tensor = (free @ torch.linalg.solve(gram, residual.T)).T
    return update
