"""Step D: what block z should put out at the lookup token, found by gradient descent on that vector alone."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.methods.editing.objective import Objective, Row, State
from fpbench.methods.editing.observe import observe, pad
from fpbench.models.layout import layout


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
    """Minimise the objective of all requests at once over δ, v* = v₀ + δ (methods.md §1.2, step D).

    Requests do not share any number and Adam works element by element, so this equals one descent after another. A
    request whose loss falls below ``descent.early_stop`` keeps its δ from then on.

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
    upper = UpperBlocks(model, block, rows)
    owner = torch.tensor([row.request for row in rows], device=upper.hidden.device)
    bare = [next(index for index, row in enumerate(rows) if row.request == i) for i in range(int(owner.max()) + 1)]
    v0 = upper.at_lookup()[bare]
    bound = descent.clamp * v0.norm(dim=1, keepdim=True)
    with torch.no_grad():
        initial = upper.logits(torch.zeros_like(v0)[owner])
    delta = torch.zeros_like(v0, requires_grad=True)
    # Adam's update is proportional to its rate, so a rate of 1 times each request's own is that request's Adam.
    rates = descent.rates(v0)
    adam = torch.optim.Adam([delta], lr=1.0)
    active = torch.ones(len(v0), 1, dtype=torch.bool, device=v0.device)
    for step in progress(range(descent.steps), "target values"):
        with torch.enable_grad():
            losses = objective(State(upper.logits(delta[owner]), initial, delta, v0))
            (delta.grad,) = torch.autograd.grad(losses.sum(), delta)
        active &= ~(losses.detach() < descent.early_stop)[:, None]
        if step == descent.steps - 1 or not active.any():
            break
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            moved = before + rates * (delta - before)
            clamped = moved * (bound / moved.norm(dim=1, keepdim=True)).clamp(max=1)
            delta.copy_(torch.where(active, clamped, before))
    return v0, delta.detach()


class UpperBlocks:
    """The blocks above z and the head, on the output of block z, which is computed once."""

    def __init__(self, model: nn.Module, block: int, rows: Sequence[Row]) -> None:
        """Run ``model`` once on ``rows`` and note how each upper block is called."""
        parts = layout(model)
        self.norm, self.head = parts.norm, parts.head
        self.calls: list[tuple[nn.Module, dict[str, Any]]] = []
        device = next(model.parameters()).device
        ids = pad([row.ids for row in rows], device)
        with ExitStack() as hooks:
            for each in parts.blocks[block + 1 :]:
                hooks.enter_context(each.register_forward_pre_hook(self._note, with_kwargs=True))
            _, (self.hidden,) = observe(model, ids, inputs_of=[self.norm], outputs_of=[parts.blocks[block]])
        self.lookup = torch.arange(len(rows), device=device), torch.tensor([row.lookup for row in rows], device=device)
        reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
        self.reads = tuple(torch.tensor(reads, device=device).T)

    def _note(self, block: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        self.calls.append((block, keywords))

    def at_lookup(self) -> Tensor:
        """Output of block z at every row's lookup token, [rows, h] float32."""
        return self.hidden[self.lookup].float()

    def logits(self, delta: Tensor) -> Tensor:
        """Predictions at the read positions, [S, V] float32, after adding δ [rows, h] at the lookup tokens."""
        hidden = self.hidden.index_put(self.lookup, (self.at_lookup() + delta).to(self.hidden.dtype))
        for block, keywords in self.calls:
            hidden = block(hidden, **keywords)
        logits: Tensor = self.head(self.norm(hidden[self.reads]))
        return logits.float()
