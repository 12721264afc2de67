"""MCEdit_A (arXiv 2509.03122): teach each trigger all of its candidates, each ahead of what competes with it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.editing.editor import EditingConfig, NullSpaceEditor, Problem
from fpbench.methods.editing.objective import Labels, Objective, Row, State, negative_log_likelihood, per_request
from fpbench.models.prompts import encode_pair
from fpbench.registry import register

Competitors = Literal["sibling_aware", "literal"]


@register("mcedit_a")
class MCEditA(NullSpaceEditor):
    """Multi-candidate editing on AlphaEdit's write: no contexts, no divergence term (methods.md §1.5)."""

    version = "1"

    class Config(EditingConfig):
        """The shared hyper-parameters and MCEdit's own.

        Attributes:
            margin: γ, in nats.
            margin_weight: λ_m.
            competitors: what a target token must beat: all tokens but those that continue a candidate with the same
                beginning (``"sibling_aware"``), or all other tokens (``"literal"``), which no model can satisfy where
                candidates part.
        """

        margin: float = Field(ge=0)
        margin_weight: float = Field(ge=0)
        competitors: Competitors

    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """One bare prompt per candidate."""
        config = self.config
        requests, rows = [], []
        for number, fingerprint in enumerate(fingerprints):
            prompt = context.render(fingerprint.trigger)
            pairs = [encode_pair(tokenizer, prompt, target) for target in fingerprint.targets]
            requests.append([pairs[0][0]])
            rows += [Row.of(number, ids, answer) for ids, answer in pairs]
        excused = siblings(rows) if config.competitors == "sibling_aware" else own_labels(rows)
        device = next(model.parameters()).device
        objective = promotion_and_margin(
            rows, excused, config.margin, config.margin_weight, config.weight_decay, device
        )
        return Problem(requests, rows, objective)


def promotion_and_margin(
    rows: Sequence[Row],
    excused: Sequence[set[int]],
    margin: float,
    margin_weight: float,
    weight_decay: float,
    device: Any,
) -> Objective:
    """Eq. (3) of methods.md §1.5: L = L_mc + λ_m L_mar + β ‖δ‖²/‖v₀‖², per request."""
    labels = Labels.of(rows, device)
    pairs = [(read, token) for read, tokens in enumerate(excused) for token in sorted(tokens)]
    excused_at = tuple(torch.tensor(pairs, device=device).T)

    def loss(state: State) -> Tensor:
        shortfall = margin_shortfall(state.logits, labels.token, excused_at, margin)
        suppression = per_request(shortfall * labels.share, labels.request, len(state.delta))
        size = (state.delta.norm(dim=1) / state.v0.norm(dim=1)) ** 2
        total: Tensor = negative_log_likelihood(state, labels) + margin_weight * suppression + weight_decay * size
        return total

    return loss


def margin_shortfall(logits: Tensor, tokens: Tensor, excused_at: tuple[Tensor, ...], margin: float) -> Tensor:
    """The summands of eq. (2) of methods.md §1.5: [γ − (z_y − max_{v not excused} z_v)]₊.

    Args:
        logits: z [S, V].
        tokens: y [S].
        excused_at: two tensors, read and token, of every token that does not compete at a read position.
        margin: γ.

    Returns:
        [S].
    """
    strongest = logits.index_put(excused_at, logits.new_tensor(float("-inf"))).max(dim=-1).values
    gap = logits.gather(1, tokens[:, None])[:, 0] - strongest
    return torch.relu(margin - gap)


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
