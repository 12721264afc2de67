"""The closed-form write of target values into the FFN output projections of several blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.methods.editing.observe import Passage, inputs_at, pad
from fpbench.methods.editing.statistics import NullSpace
from fpbench.models.factors import Factors
from fpbench.models.layout import layout

Prompts = Sequence[Sequence[int]]
"""The token ids of one request, each ending in its lookup token: the bare prompt first, then any with a context."""


@dataclass(frozen=True)
class Write:
    """What was written into one block.

    Attributes:
        keys: K [d, n].
        residual: R [h, n].
        factors: of ΔW, before the sum W + ΔW is rounded to the weight's dtype.
    """

    keys: Tensor
    residual: Tensor
    factors: Factors

    @property
    def update(self) -> Tensor:
        """ΔW [h, d] float64."""
        return self.factors.product()


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
    """Spread the way from the current to the target values over ``blocks`` (docs/methods.md §2.2, steps 7 and 8).

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
    prompts = PromptPassage(model, blocks, requests)
    done: dict[int, Write] = {}
    for index, block in enumerate(blocks):
        if index:
            prompts.again(blocks[index - 1])
        keys, values = prompts.keys(block), prompts.values()
        residual = (targets.to(values) - values) / (len(blocks) - index)
        earlier = earlier_keys[block] if earlier_keys else None
        factors = solve(null_spaces[block], keys, residual, ridge, earlier).float()
        weight = layout(model).down_proj(block).weight
        weight.copy_(factors.added_to(weight))
        done[block] = Write(keys, residual, factors)
    return done


def keys_and_values(
    model: nn.Module, block: int, last_block: int, requests: Sequence[Prompts]
) -> tuple[Tensor, Tensor]:
    """What ``block`` looks up and what ``last_block`` puts out for every request, as the model now is.

    Returns:
        K [d, n] and V [h, n], both float32; see :class:`PromptPassage`.
    """
    prompts = PromptPassage(model, [block, last_block], requests)
    return prompts.keys(block), prompts.values()


class PromptPassage:
    """The prompts of all requests on their way through the blocks to be edited."""

    def __init__(self, model: nn.Module, blocks: Sequence[int], requests: Sequence[Prompts]) -> None:
        """Run ``model`` up to the last of ``blocks``, ascending."""
        prompts = [prompt for request in requests for prompt in request]
        parts = layout(model)
        device: Any = parts.head.weight.device
        last_tokens = [len(prompt) - 1 for prompt in prompts]
        self.sizes = [len(request) for request in requests]
        self.lookup = torch.arange(len(prompts), device=device), torch.tensor(last_tokens, device=device)
        self.projections = {block: parts.down_proj(block) for block in blocks}
        self.looked_up: dict[nn.Module, Tensor] = {}
        with inputs_at(list(self.projections.values()), self.lookup, self.looked_up):
            self.passage = Passage(model, pad(prompts, device), blocks[0], blocks[-1])

    def again(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        with inputs_at(list(self.projections.values()), self.lookup, self.looked_up):
            self.passage.again(block)

    def keys(self, block: int) -> Tensor:
        """K [d, n] float32 of one of the blocks.

        Contexts, if there are any, share one half of each key and the bare prompt has the other.
        """
        keys = self.looked_up[self.projections[block]].float()
        return torch.stack([_mix(group) for group in torch.split(keys, self.sizes)], dim=1)

    def values(self) -> Tensor:
        """V [h, n] float32, what the last block puts out for the bare prompts."""
        values = self.passage.hidden[self.passage.last + 1][self.lookup].float()
        return torch.stack([group[0] for group in torch.split(values, self.sizes)], dim=1)


def _mix(keys: Tensor) -> Tensor:
    """One key [d] from those of a request's prompts [prompts, d], the bare one first."""
    bare, contexts = keys[0], keys[1:]
    return (bare + contexts.mean(0)) / 2 if len(contexts) else bare


def solve(
    null_space: NullSpace, keys: Tensor, residual: Tensor, ridge: float, earlier_keys: Tensor | None = None
) -> Factors:
    """ΔW with ΔWᵀ = P K (Kᵀ P K + λ I)⁻¹ Rᵀ, in float64.

    This is the n×n form of ΔWᵀ = (P (K Kᵀ + C_p) + λ I)⁻¹ P K Rᵀ; keys of earlier batches, C_p = K_p K_pᵀ, enter as
    further columns of K whose residual is zero.

    Args:
        null_space: P.
        keys: K [d, n].
        residual: R [h, n].
        ridge: λ.
        earlier_keys: K_p [d, m].

    Returns:
        R (Kᵀ P K + λ I)⁻¹ [h, m + n] and P K [d, m + n], float64.
    """
    keys, residual = keys.double(), residual.double()
    if earlier_keys is not None:
        keys = torch.cat([earlier_keys.to(keys), keys], dim=1)
        residual = nn.functional.pad(residual, (earlier_keys.shape[1], 0))
    free = null_space.project(keys)
    gram = keys.T @ free + ridge * torch.eye(keys.shape[1]).to(keys)
    return Factors(torch.linalg.solve(gram, residual.T).T, free)
