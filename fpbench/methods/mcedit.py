"""MCEdit (arXiv 2509.03122): teach each trigger all of its candidates, each ahead of what competes with it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.alphaedit import (
    EditingConfig,
    NullSpaceEditor,
    Problem,
    RewritingConfig,
    divergence,
    rewriting_prompts,
)
from fpbench.methods.base import InjectionContext
from fpbench.methods.partial_forward import Row
from fpbench.methods.rledit import RLEdit
from fpbench.methods.target_values import Labels, Objective, State, negative_log_likelihood, per_request
from fpbench.registry import register

# What keeps a target ahead of the other tokens: a margin over the strongest, or the whole vocabulary's mass.


Positions = tuple[Tensor, ...]
"""Two tensors, read and token, of every token that does not compete at a read position."""
NEGATIVE_INFINITY = float("-inf")


class SuppressionConfig(BaseModel):
    """How MCEdit suppresses what competes with its candidates (docs/methods.md §2.5; the switches are its ablations).

    Attributes:
        suppression: ``"margin"``, FPEdit's ``"vocabulary"`` in its stead, or ``"none"``.
        margin: γ, in nats.
        margin_weight: λ_m, the weight of the suppression.
        competitors: what a target token must beat: all tokens but those that continue a candidate with the same
            beginning (``"sibling_aware"``), or all other tokens (``"literal"``), which no model can satisfy where
            candidates part.
    """

    suppression: Literal["margin", "vocabulary", "none"]
    margin: float = Field(ge=0)
    margin_weight: float = Field(ge=0)
    competitors: Literal["sibling_aware", "literal"]


def suppression(rows: Sequence[Row], config: SuppressionConfig, device: Any) -> Callable[[Tensor, Labels], Tensor]:
    """The suppression term at every label, [M], as a function of the logits [S, V] and the labels."""
    excused = siblings(rows) if config.competitors == "sibling_aware" else own_labels(rows)
    pairs = [(read, token) for read, tokens in enumerate(excused) for token in sorted(tokens)]
    excused_at = tuple(torch.tensor(pairs, device=device).T)

    def measure(logits: Tensor, labels: Labels) -> Tensor:
        read = logits[labels.read]
        if config.suppression == "margin":
            return margin_shortfall(read, labels.token, excused_at, config.margin)
        if config.suppression == "vocabulary":
            return vocabulary_suppression(read, excused_at)
        return read.new_zeros(len(read))

    return measure


def margin_shortfall(logits: Tensor, tokens: Tensor, excused_at: Positions, margin: float) -> Tensor:
    """The summands of L_mar (docs/methods.md §2.5, eq. (18)): [γ − (z_y − max_{v not excused} z_v)]₊.

    Args:
        logits: z [M, V].
        tokens: y [M].
        excused_at: which tokens do not compete.
        margin: γ.

    Returns:
        [M].
    """
    strongest = logits.index_put(excused_at, logits.new_tensor(NEGATIVE_INFINITY)).max(dim=-1).values
    gap = logits.gather(1, tokens[:, None])[:, 0] - strongest
    return torch.relu(margin - gap)


def vocabulary_suppression(logits: Tensor, excused_at: Positions) -> Tensor:
    """The summands of FPEdit's L_sup: −Σ_{v not excused} log(1 − p(v)) (docs/methods.md §2.3, eq. (10)).

    Args:
        logits: [M, V].
        excused_at: which tokens do not compete, the target among them.

    Returns:
        [M], finite also where a competitor has all the probability.
    """
    log_p = logits.log_softmax(-1)
    # Only the largest p can round to 1; what the others have together is exact where one minus it is not.
    largest = log_p.argmax(-1, keepdim=True)
    rest = log_p.scatter(1, largest, NEGATIVE_INFINITY).logsumexp(-1, keepdim=True)
    others = torch.log1p(-log_p.scatter(1, largest, NEGATIVE_INFINITY).exp())
    return -others.scatter(1, largest, rest).index_put(excused_at, logits.new_tensor(0.0)).sum(-1)


def siblings(rows: Sequence[Row]) -> list[set[int]]:
    """For each label y_t the tokens that continue any candidate of its request so begun, {y′_t : y′_<t = y_<t}."""
    following: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    for row in rows:
        for t, token in enumerate(row.labels):
            following[row.request, tuple(row.labels[:t])].add(token)
    return [following[row.request, tuple(row.labels[:t])] for row in rows for t in range(len(row.labels))]


def own_labels(rows: Sequence[Row]) -> list[set[int]]:
    """For each label, itself alone."""
    return [{token} for row in rows for token in row.labels]


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
        requests, rows = rewriting_prompts(model, tokenizer, fingerprints, self.targets, self.config, context)
        return Problem(requests, rows, self.objective(rows, next(model.parameters()).device))

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """All candidates."""
        chosen: Sequence[str] = self.config.taught(fingerprint)
        return chosen

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
