"""MCEdit (arXiv 2509.03122): teach each trigger all of its candidates, each ahead of what competes with it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from torch import Tensor, nn

from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.editing.editor import EditingConfig, NullSpaceEditor, Problem
from fpbench.methods.editing.objective import Labels, Objective, Row, State, negative_log_likelihood, per_request
from fpbench.methods.editing.rewriting import RewritingConfig, divergence, rewriting_prompts
from fpbench.methods.editing.suppression import SuppressionConfig, suppression
from fpbench.methods.rledit import RLEdit
from fpbench.registry import register


class CandidatesConfig(BaseModel):
    """Which targets are taught.

    Attributes:
        candidates: ``"all"``, or the ``"primary"`` alone (the ablation).
    """

    candidates: Literal["all", "primary"]

    def taught(self, fingerprint: Fingerprint) -> Sequence[str]:
        """The targets of ``fingerprint`` that are taught."""
        return fingerprint.targets if self.candidates == "all" else [fingerprint.primary]


@register("mcedit_a")
class MCEditA(NullSpaceEditor):
    """Multi-candidate editing on AlphaEdit's write: by default no contexts, no divergence (docs/methods.md §2.5)."""

    version = "1"

    class Config(EditingConfig, RewritingConfig, SuppressionConfig, CandidatesConfig):
        """See the four."""

    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """One request per fingerprint, with all of its candidates."""
        requests, rows = rewriting_prompts(model, tokenizer, fingerprints, self.config.taught, self.config, context)
        return Problem(requests, rows, self.objective(rows, next(model.parameters()).device))

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """docs/methods.md §2.5, eq. (20): L = L_mc + λ_m L_mar + β ‖δ‖²/‖v₀‖², and κ KL where it is switched on."""
        config = self.config
        promotion = promotion_and_suppression(rows, config, device)
        moved = divergence(rows, device)

        def loss(state: State) -> Tensor:
            size = (state.delta.norm(dim=1) / state.v0.norm(dim=1)) ** 2
            total: Tensor = promotion(state.logits) + config.weight_decay * size
            return total + config.kl_factor * moved(state) if config.kl_factor else total

        return loss


@register("mcedit_r")
class MCEditR(RLEdit):
    """Multi-candidate editing on RLEdit's trajectory; no paraphrases (docs/methods.md §2.6)."""

    version = "1"

    class Config(RLEdit.Config, SuppressionConfig, CandidatesConfig):
        """See the three."""

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """All candidates."""
        chosen: Sequence[str] = self.config.taught(fingerprint)
        return chosen

    def loss(self, rows: Sequence[Row], device: Any) -> Callable[[Tensor], Tensor]:
        """L_mc + λ₁ L_mar, the mean over fingerprints."""
        promotion = promotion_and_suppression(rows, self.config, device)
        return lambda logits: promotion(logits).mean()


def promotion_and_suppression(
    rows: Sequence[Row], config: SuppressionConfig, device: Any
) -> Callable[[Tensor], Tensor]:
    """L_mc + λ_m L_mar (docs/methods.md §2.5, eqs. (17) and (18)): logits [S, V] to one figure per request, [n]."""
    labels = Labels.of(rows, device)
    suppressed = suppression(rows, config, device)

    def measure(logits: Tensor) -> Tensor:
        shortfall = per_request(suppressed(logits, labels) * labels.share, labels.request, labels.requests)
        return negative_log_likelihood(logits, labels) + config.margin_weight * shortfall

    return measure
