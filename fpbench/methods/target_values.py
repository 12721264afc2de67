"""Target values: what block z should put out at the lookup token, by gradient descent on that vector alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.methods.partial_forward import Row, UpperBlocks
from fpbench.models.meter import Progress


@dataclass(frozen=True)
class State:
    """Input of an objective in one step: n requests, S read positions in the order of the rows."""

    logits: Tensor  # [S, V] float32
    initial: Tensor  # the same at δ = 0
    delta: Tensor  # δ [n, h] float32
    v0: Tensor  # v₀ [n, h] float32


Objective = Callable[[State], Tensor]
"""Maps a state to one loss per request, [n]."""


def optimise(
    model: nn.Module,
    block: int,
    rows: Sequence[Row],
    objective: Objective,
    *,
    learning_rate: float | None = None,
    relative_rate: float | None = None,
    steps: int,
    clamp: float,
    early_stop: float,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Minimise the objective of all requests at once over δ, v* = v₀ + δ (docs/methods.md §2.2, steps 5 and 6).

    Requests do not share any number and Adam works element by element, so this equals one descent after another. A
    request whose loss falls below ``early_stop`` keeps its δ from then on and leaves the batch.

    Args:
        model: its parameters are not touched.
        block: z, whose output is moved.
        rows: all sequences of all requests.
        objective: one loss per request.
        learning_rate: Adam's rate; or else
        relative_rate: Adam's rate in units of the root mean square of v₀, which differs a hundredfold between models.
        steps: forward passes; one update fewer.
        clamp: c, the bound ‖δ‖ ≤ c‖v₀‖.
        early_stop: the loss at which a request is done.
        progress: shows the steps.

    Returns:
        v₀ and δ, [n, h] float32.
    """
    upper = UpperBlocks.of(model, block, rows)
    v0 = upper.v0()
    bound = clamp * v0.norm(dim=1, keepdim=True)  # (n, 1)
    if relative_rate is None:
        rates = torch.full_like(bound, float(learning_rate or 0))
    else:
        rates = relative_rate * v0.square().mean(dim=1, keepdim=True).sqrt()
    with torch.no_grad():
        initial = upper.logits(torch.zeros_like(v0))
    delta = torch.zeros_like(v0, requires_grad=True)
    # Adam's update is proportional to its rate, so a rate of 1 times each request's own is that request's Adam.
    adam = torch.optim.Adam([delta], lr=1.0)
    active = torch.ones(len(v0), dtype=torch.bool, device=v0.device)
    for step in progress(range(steps), "target values"):
        with torch.enable_grad():
            logits = upper.logits(delta)
            losses = objective(State(logits, initial, delta, v0))  # (n)
            (delta.grad,) = torch.autograd.grad(losses.sum(), delta)
        done = active & (losses.detach() < early_stop)
        active &= ~done
        if step == steps - 1 or not active.any():
            break
        if done.any():
            upper = upper.only(active, logits.detach())
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            moved = before + rates * (delta - before)
            # docs/methods.md §2.2, eq. (6)
            clamped = moved * (bound / moved.norm(dim=1, keepdim=True)).clamp(max=1)
            delta.copy_(torch.where(active[:, None], clamped, before))
    return v0, delta.detach()


# The terms that objectives are made of.


@dataclass(frozen=True)
class Labels:
    """The read positions that have a label, M of S."""

    read: Tensor  # their numbers among all S read positions, [M]
    token: Tensor  # the labels, [M]
    request: Tensor  # whose they are, [M]
    row_share: Tensor  # 1 / (labels in the row · labelled rows of the request), [M]: the weights of a mean of row means
    share: Tensor  # 1 / (labels of the request), [M]: the weights of a plain mean
    requests: int  # n, how many requests there are

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Labels":
        """Collect the labels of ``rows``."""
        rows_of = Counter(row.request for row in rows if row.labels)
        labels_of = Counter(row.request for row in rows for _ in row.labels)
        reads = [(row, index) for row in rows for index in range(len(row.positions))]
        labelled = [(read, row, row.labels[index]) for read, (row, index) in enumerate(reads) if row.labels]
        return cls(
            torch.tensor([read for read, _, _ in labelled], device=device),
            torch.tensor([token for _, _, token in labelled], device=device),
            torch.tensor([row.request for _, row, _ in labelled], device=device),
            torch.tensor([1 / (len(row.labels) * rows_of[row.request]) for _, row, _ in labelled], device=device),
            torch.tensor([1 / labels_of[row.request] for _, row, _ in labelled], device=device),
            1 + max(row.request for row in rows),
        )


def per_request(values: Tensor, request: Tensor, n: int) -> Tensor:
    """Sum values [M] by the request that they belong to, [n]."""
    return values.new_zeros(n).index_add(0, request, values)


def negative_log_likelihood(logits: Tensor, labels: Labels) -> Tensor:
    """Return −mean_y (1/|y|) Σ_t log p(y_t | x, y_<t) over each request's rows, [n] (docs/methods.md §2.5, eq. (17)).

    The logits are those of all S read positions, [S, V].
    """
    log_p = logits[labels.read].log_softmax(-1)  # (M, V)
    surprise = -log_p.gather(1, labels.token[:, None])[:, 0]
    return per_request(surprise * labels.row_share, labels.request, labels.requests)
