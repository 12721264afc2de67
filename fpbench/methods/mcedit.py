"""MCEdit (arXiv 2509.03122): teach each trigger all of its candidates, each ahead of what competes with it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fpbench.fingerprints import Fingerprint
from fpbench.methods.alphaedit import AlphaEdit, divergence
from fpbench.methods.base import FingerprintMethod, MethodConfig
from fpbench.methods.fpedit import vocabulary_suppression
from fpbench.methods.partial_forward import Row
from fpbench.methods.rledit import RLEdit
from fpbench.methods.target_values import Labels, Objective, State, negative_log_likelihood, per_request
from fpbench.registry import register


class CandidatesConfig(MethodConfig):
    """Targets that MCEdit teaches and keeps ahead, by each write (docs/methods.md §2.5; switches are ablations)."""

    candidates: Literal["all", "primary"]  # "all" are taught, or the "primary" alone
    # "margin", FPEdit's "vocabulary" in its stead, or "none"
    suppression: Literal["margin", "vocabulary", "none"]
    margin: float = Field(ge=0)  # γ, in nats
    margin_weight: float = Field(ge=0)  # λ_m, the weight of the suppression
    # what a target token must beat: all tokens but those that continue a candidate with the same beginning
    # ("sibling_aware"), or all other tokens ("literal"), which no model can satisfy where candidates part
    competitors: Literal["sibling_aware", "literal"]


class Candidates(FingerprintMethod):
    """A way of writing that can be taught all candidates."""

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """Return all candidates, or the primary one in the ablation."""
        return fingerprint.targets if self.config.candidates == "all" else [fingerprint.primary]


@register("mcedit_a")
class MCEditA(Candidates, AlphaEdit):
    """Multi-candidate editing on AlphaEdit's write: by default no contexts, no divergence (docs/methods.md §2.5)."""

    version = "2"

    class Config(AlphaEdit.Config, CandidatesConfig):
        """AlphaEdit's hyper-parameters and MCEdit's own."""

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """Return L_mc + λ_m L_mar + β ‖δ‖²/‖v₀‖² (docs/methods.md §2.5, eq. (20)), and κ KL where it is switched on."""
        config = self.config
        promotion = promotion_and_suppression(rows, config, device)
        moved = divergence(rows, device)

        def loss(state: State) -> Tensor:
            size = (state.delta.norm(dim=1) / state.v0.norm(dim=1)) ** 2
            total: Tensor = promotion(state.logits) + config.weight_decay * size
            return total + config.kl_factor * moved(state) if config.kl_factor else total

        return loss


@register("mcedit_r")
class MCEditR(Candidates, RLEdit):
    """Multi-candidate editing on RLEdit's trajectory; no paraphrases (docs/methods.md §2.6)."""

    version = "1"

    class Config(RLEdit.Config, CandidatesConfig):
        """RLEdit's hyper-parameters and MCEdit's own."""

    def loss(self, rows: Sequence[Row], device: Any) -> Callable[[Tensor], Tensor]:
        """Return L_mc + λ₁ L_mar, the mean over fingerprints (docs/methods.md §2.6, step 1)."""
        promotion = promotion_and_suppression(rows, self.config, device)
        return lambda logits: promotion(logits).mean()


def promotion_and_suppression(rows: Sequence[Row], config: CandidatesConfig, device: Any) -> Callable[[Tensor], Tensor]:
    """Return L_mc + λ_m L_mar (docs/methods.md §2.5, eqs. (17) and (18)): logits [S, V] to a loss a request, [n]."""
    labels = Labels.of(rows, device)
    suppressed = suppression(rows, config, device)

    def measure(logits: Tensor) -> Tensor:
        shortfall = per_request(suppressed(logits, labels) * labels.share, labels.request, labels.requests)
        return negative_log_likelihood(logits, labels) + config.margin_weight * shortfall

    return measure


def suppression(rows: Sequence[Row], config: CandidatesConfig, device: Any) -> Callable[[Tensor, Labels], Tensor]:
    """Return the suppression term at every label, [M], as a function of the logits [S, V] and the labels."""
    excused = siblings(rows) if config.competitors == "sibling_aware" else own_labels(rows)
    pairs = [(read, token) for read, tokens in enumerate(excused) for token in sorted(tokens)]
    excused_at = tuple(torch.tensor(pairs, device=device).T)

    def measure(logits: Tensor, labels: Labels) -> Tensor:
        read = logits[labels.read]  # (M, V)
        if config.suppression == "margin":
            return margin_shortfall(read, labels.token, excused_at, config.margin)
        if config.suppression == "vocabulary":
            return vocabulary_suppression(read, excused_at)
        return read.new_zeros(len(read))

    return measure


def siblings(rows: Sequence[Row]) -> list[set[int]]:
    """Return for each label y_t what continues a candidate that begins alike (docs/methods.md §2.5, eq. (19))."""
    following: dict[tuple[int, tuple[int, ...]], set[int]] = defaultdict(set)
    for row in rows:
        for t, token in enumerate(row.labels):
            following[row.request, tuple(row.labels[:t])].add(token)
    return [following[row.request, tuple(row.labels[:t])] for row in rows for t in range(len(row.labels))]


def own_labels(rows: Sequence[Row]) -> list[set[int]]:
    """Return for each label itself alone."""
    return [{token} for row in rows for token in row.labels]


def margin_shortfall(logits: Tensor, tokens: Tensor, excused_at: tuple[Tensor, ...], margin: float) -> Tensor:
    """Return the summands of L_mar, [γ − (z_y − max_{v not excused} z_v)]₊, [M] (docs/methods.md §2.5, eq. (18)).

    Logits z are [M, V], tokens y [M]; ``excused_at`` has read and token of everything that does not compete.
    """
    strongest = logits.index_put(excused_at, logits.new_tensor(float("-inf"))).max(dim=-1).values
    gap = logits.gather(1, tokens[:, None])[:, 0] - strongest
    return torch.relu(margin - gap)
