"""What keeps a target ahead of the other tokens: a margin over the strongest, or the whole vocabulary's mass."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fpbench.methods.editing.objective import Labels, Row

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
