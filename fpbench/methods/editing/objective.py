"""What a target value is optimised for: sequences with labels, and a loss over them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One sequence of one request, T tokens.

    Attributes:
        request: number of the request, 0 … n−1; the first row of a request is its bare prompt.
        ids: token ids [T].
        lookup: where the request's δ is added.
        positions: where the model's prediction is read.
        labels: the token to be predicted at each of the positions; empty if only the distribution is looked at.
    """

    request: int
    ids: Sequence[int]
    lookup: int
    positions: Sequence[int]
    labels: Sequence[int] = ()

    @classmethod
    def of(cls, request: int, prompt: Sequence[int], answer: Sequence[int]) -> "Row":
        """An answer after a prompt, teacher-forced, with δ at the prompt's last token."""
        lookup = len(prompt) - 1
        return cls(request, [*prompt, *answer[:-1]], lookup, range(lookup, lookup + len(answer)), answer)


@dataclass(frozen=True)
class State:
    """What an objective sees in one step: n requests, S read positions in the order of the rows.

    Attributes:
        logits: [S, V] float32.
        initial: the same at δ = 0.
        delta: δ [n, h] float32.
        v0: v₀ [n, h] float32.
    """

    logits: Tensor
    initial: Tensor
    delta: Tensor
    v0: Tensor


Objective = Callable[[State], Tensor]
"""Maps a state to one loss per request, [n]."""


@dataclass(frozen=True)
class Labels:
    """The read positions that have a label, M of S.

    Attributes:
        read: their numbers among all S read positions, [M].
        token: the labels, [M].
        request: whose they are, [M].
        row_share: 1 / (labels in the row · labelled rows of the request), [M]: the weights of a mean of row means.
        share: 1 / (labels of the request), [M]: the weights of a plain mean.
        requests: n, how many requests there are.
    """

    read: Tensor
    token: Tensor
    request: Tensor
    row_share: Tensor
    share: Tensor
    requests: int

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
    """−mean_y (1/|y|) Σ_t log p(y_t | x, y_<t) of every request, [n], over its rows y (docs/methods.md §2.5, eq. (17)).

    Args:
        logits: at all S read positions, [S, V].
        labels: which of these have a label, and which.
    """
    log_p = logits[labels.read].log_softmax(-1)
    surprise = -log_p.gather(1, labels.token[:, None])[:, 0]
    return per_request(surprise * labels.row_share, labels.request, labels.requests)
