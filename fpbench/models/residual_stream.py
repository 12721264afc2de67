"""What a block adds to the residual stream for an output of its FFN, found by running blocks on a few tokens.

Most blocks add the output u of the FFN output projection as it is. Granite adds c u; Gemma 2 and 3 and OLMo 2 add a
normalised u. Target values and the write (docs/methods.md §2.2, steps 5 to 8) have to know.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.errors import InputError
from fpbench.models.layout import NORM, Layout, StopForward, call_of, layout, stream

# How far a block may be from what is said of it, in units of what it puts out: rounding in bfloat16 stays below.
TOLERANCE = 0.03
# A factor this close to 1 is 1.
UNIT = 0.01
# Directions with less than this share of the mean gain of a normalisation cannot be written to.
SMALLEST_GAIN = 0.01


# Hidden states and keywords of a block.
Call = tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Contribution:
    """What one block adds to the stream for an output u of its FFN output projection: c u, or c norm(u)."""

    factor: float = 1.0  # c
    norm: nn.Module | None = None  # an RMS normalisation, g ⊙ u / rms(u)

    def __call__(self, u: Tensor) -> Tensor:
        """Return what is added for u [·, h], in float32."""
        return (u if self.norm is None else self.norm(u)).float() * self.factor

    def needed(self, u: Tensor, gain: Tensor) -> Tensor:
        """Return what u [n, h] has to gain for the stream to gain so much, [n, h] float32.

        Exact without a normalisation. With one, its denominator is held: rms(u) R / (c g), and 0 where g is almost 0.
        """
        if self.norm is None:
            return gain / self.factor
        g = self.gains(u) * self.factor  # (h)
        least = SMALLEST_GAIN * g.square().mean().sqrt()
        rms = u.float().square().mean(dim=1, keepdim=True).sqrt()  # (n, 1)
        return torch.where(g.abs() > least, rms * gain / g, torch.zeros_like(gain))

    def gains(self, u: Tensor) -> Tensor:
        """Return g [h] float32 of the normalisation, as it is for vectors like u [·, h]."""
        assert self.norm is not None
        return self.norm(torch.ones_like(u[:1]))[0].float()  # type: ignore[no-any-return]


@torch.no_grad()
def contributions(model: nn.Module, blocks: Sequence[int], ids: Sequence[int]) -> dict[int, Contribution]:
    """Return what each of ``blocks`` adds to the stream, ascending, tried out on the tokens ``ids``.

    Raises:
        InputError: if a block does something else with the output of its FFN.
    """
    parts = layout(model)
    calls: dict[int, Call] = {}

    def note(number: int, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls[number] = call_of(block, arguments, keywords)
        if number == blocks[-1]:
            raise StopForward

    with ExitStack() as hooks, suppress(StopForward):
        for number in blocks:
            hook = partial(note, number)
            hooks.enter_context(parts.blocks[number].register_forward_pre_hook(hook, with_kwargs=True))
        device: Any = parts.embedding.weight.device
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    return {block: _contribution(parts, block, calls[block]) for block in blocks}


def _contribution(parts: Layout, number: int, call: Call) -> Contribution:
    block, projection, (hidden, keywords) = parts.blocks[number], parts.down_proj(number), call
    norms = [module for module in block.modules() if NORM.search(type(module).__name__)]
    seen: dict[str, Any] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen["u"] = output

    def follow(norm: nn.Module, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if "u" in seen and arguments[0].data_ptr() == seen["u"].data_ptr():
            seen["norm"] = norm

    with ExitStack() as hooks:
        hooks.enter_context(projection.register_forward_hook(note))
        for each in norms:
            hooks.enter_context(each.register_forward_pre_hook(partial(follow, each)))
        before = stream(block(hidden, **keywords)).float()
    u, norm = seen["u"], seen.get("norm")
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    moved = u + (noise * before.square().mean().sqrt()).to(u).view_as(u)
    with projection.register_forward_hook(lambda module, arguments, output: moved):
        change = stream(block(hidden, **keywords)).float() - before
    plain = Contribution(norm=norm)
    expected = (plain(moved) - plain(u)).view_as(change)
    factor = float((change * expected).sum() / expected.square().sum())
    found = Contribution(1.0 if abs(factor - 1) < UNIT else factor, norm)
    wrong = float((change - found.factor * expected).norm() / (before.norm() + expected.norm()))
    if norm is not None:
        scaled = found.gains(u) * moved.float() / moved.float().square().mean(-1, keepdim=True).sqrt()
        wrong = max(wrong, float((scaled - plain(moved)).norm() / scaled.norm()))
    if not wrong < TOLERANCE:
        raise InputError(
            f"model type {parts.kind!r} cannot be edited: block {number} must add the output of its FFN to the "
            f"residual stream, as it is, scaled or after an RMS normalisation, and is {wrong:.0%} away from that."
        )
    return found
