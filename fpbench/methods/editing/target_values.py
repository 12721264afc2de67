"""What block z should put out at the lookup token, found by gradient descent on that vector alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.methods.editing.objective import Objective, Row, State
from fpbench.methods.editing.upper_blocks import UpperBlocks


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Attributes:
        learning_rate: Adam's rate; or else
        relative_rate: Adam's rate in units of the root mean square of v₀, which differs a hundredfold between models.
        steps: forward passes; one update fewer.
        clamp: c, the bound ‖δ‖ ≤ c‖v₀‖.
        early_stop: the loss at which a request is done.
    """

    learning_rate: float | None
    relative_rate: float | None
    steps: int
    clamp: float
    early_stop: float

    def rates(self, v0: Tensor) -> Tensor:
        """Adam's rate for each request, [n, 1], given v₀ [n, h]."""
        if self.relative_rate is None:
            return torch.full_like(v0[:, :1], float(self.learning_rate or 0))
        return self.relative_rate * v0.square().mean(dim=1, keepdim=True).sqrt()


def optimise(
    model: nn.Module,
    block: int,
    rows: Sequence[Row],
    objective: Objective,
    descent: Descent,
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> tuple[Tensor, Tensor]:
    """Minimise the objective of all requests at once over δ, v* = v₀ + δ (docs/methods.md §2.2, steps 5 and 6).

    Requests do not share any number and Adam works element by element, so this equals one descent after another. A
    request whose loss falls below ``descent.early_stop`` keeps its δ from then on and leaves the batch.

    Args:
        model: its parameters are not touched.
        block: z, whose output is moved.
        rows: all sequences of all requests.
        objective: one loss per request.
        descent: rate, steps, bound, early stop.
        progress: shows the steps.

    Returns:
        v₀ and δ, [n, h] float32.
    """
    upper = UpperBlocks.of(model, block, rows)
    v0 = upper.v0()
    bound = descent.clamp * v0.norm(dim=1, keepdim=True)
    with torch.no_grad():
        initial = upper.logits(torch.zeros_like(v0))
    delta = torch.zeros_like(v0, requires_grad=True)
    # Adam's update is proportional to its rate, so a rate of 1 times each request's own is that request's Adam.
    rates = descent.rates(v0)
    adam = torch.optim.Adam([delta], lr=1.0)
    active = torch.ones(len(v0), dtype=torch.bool, device=v0.device)
    for step in progress(range(descent.steps), "target values"):
        with torch.enable_grad():
            logits = upper.logits(delta)
            losses = objective(State(logits, initial, delta, v0))
            (delta.grad,) = torch.autograd.grad(losses.sum(), delta)
        done = active & (losses.detach() < descent.early_stop)
        active &= ~done
        if step == descent.steps - 1 or not active.any():
            break
        if done.any():
            upper = upper.only(active, logits.detach())
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            moved = before + rates * (delta - before)
            clamped = moved * (bound / moved.norm(dim=1, keepdim=True)).clamp(max=1)
            delta.copy_(torch.where(active[:, None], clamped, before))
    return v0, delta.detach()
