"""AlphaEdit (arXiv 2410.02355): teach each trigger its primary target, in the null space of what plain text uses."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.editing.editor import EditingConfig, NullSpaceEditor, Problem
from fpbench.methods.editing.objective import Labels, Objective, Row, State, negative_log_likelihood
from fpbench.methods.editing.rewriting import RewritingConfig, divergence, rewriting_prompts
from fpbench.registry import register


@register("alphaedit")
class AlphaEdit(NullSpaceEditor):
    """Null-space constrained editing of ten requests at once (docs/methods.md §2.2)."""

    version = "1"

    class Config(EditingConfig, RewritingConfig):
        """See :class:`EditingConfig` and :class:`RewritingConfig`."""

    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """One request per fingerprint, with its primary target."""
        requests, rows = rewriting_prompts(
            model, tokenizer, fingerprints, lambda each: [each.primary], self.config, context
        )
        return Problem(requests, rows, self.objective(rows, next(model.parameters()).device))

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """The loss that the target values minimise."""
        return likelihood_and_divergence(rows, self.config.kl_factor, self.config.weight_decay, device)


def likelihood_and_divergence(rows: Sequence[Row], kl_factor: float, weight_decay: float, device: Any) -> Objective:
    """AlphaEdit's loss of each request (docs/methods.md §2.2, eq. (5)).

    L(δ) = mean_j [−(1/|y|) Σ_t log p(y_t | prompt_j, y_<t)] + κ KL(p_δ ‖ p₀) + ω ‖δ‖/‖v₀‖², where j runs over the
    request's rows that have labels, and p is read from its row that has none.
    """
    labels = Labels.of(rows, device)
    moved = divergence(rows, device)

    def loss(state: State) -> Tensor:
        size = state.delta.norm(dim=1) / state.v0.norm(dim=1) ** 2
        total: Tensor = negative_log_likelihood(state.logits, labels) + weight_decay * size
        return total + kl_factor * moved(state) if kl_factor else total

    return loss
