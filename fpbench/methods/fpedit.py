"""FPEdit (arXiv 2508.02092): AlphaEdit's write, with a value that promotes the target and suppresses all else."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fpbench.methods.alphaedit import AlphaEdit, likelihood_and_divergence
from fpbench.methods.partial_forward import Row
from fpbench.methods.target_values import Labels, Objective, State, per_request
from fpbench.registry import register


@register("fpedit")
class FPEdit(AlphaEdit):
    """Promote–suppress editing in the null space (docs/methods.md §2.3; the loss is reconstructed there)."""

    version = "2"

    class Config(AlphaEdit.Config):
        """AlphaEdit's hyper-parameters and FPEdit's own."""

        suppression_weight: float = Field(ge=0)  # λ_s

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """Return L_pro + λ_s L_sup + κ KL + ω ‖δ‖/‖v₀‖² of each request (docs/methods.md §2.3, eq. (9))."""
        config = self.config
        promotion = likelihood_and_divergence(rows, config.kl_factor, config.weight_decay, device)
        labels = Labels.of(rows, device)
        targets = torch.arange(len(labels.token), device=device), labels.token

        def loss(state: State) -> Tensor:
            mass = vocabulary_suppression(state.logits[labels.read], targets)
            suppressed = per_request(mass * labels.row_share, labels.request, labels.requests)
            total: Tensor = promotion(state) + config.suppression_weight * suppressed
            return total

        return loss


def vocabulary_suppression(logits: Tensor, excused_at: tuple[Tensor, ...]) -> Tensor:
    """Return the summands of L_sup, −Σ_{v not excused} log(1 − p(v)), [M] (docs/methods.md §2.3, eq. (10)).

    They are finite also where a competitor has all the probability. ``excused_at`` has read and token of everything
    that does not compete, the target among them; logits are [M, V].
    """
    log_p = logits.log_softmax(-1)  # (M, V)
    # Only the largest p can round to 1; what the others have together is exact where one minus it is not.
    largest = log_p.argmax(-1, keepdim=True)
    others = log_p.scatter(1, largest, float("-inf"))
    rest = others.logsumexp(-1, keepdim=True)
    log_complement = torch.log1p(-others.exp()).scatter(1, largest, rest)
    return -log_complement.index_put(excused_at, logits.new_tensor(0.0)).sum(-1)
