"""What competes with a target, and what that costs it."""

import pytest
import torch

from fpbench.methods.fpedit import vocabulary_suppression
from fpbench.methods.mcedit import (
    CandidatesConfig,
    margin_shortfall,
    own_labels,
    siblings,
    suppression,
)
from fpbench.methods.partial_forward import Row
from fpbench.methods.target_values import Labels

# Two candidates that begin alike, one that does not, and another request.
ROWS = [
    Row.of(0, [7, 8], [1, 2]),
    Row.of(0, [7, 8], [1, 3]),
    Row.of(0, [7, 8], [4, 2]),
    Row.of(1, [9], [1]),
]


def config(**changes: object) -> CandidatesConfig:
    given = {
        "suppression": "margin",
        "margin": 1.0,
        "margin_weight": 1.0,
        "competitors": "sibling_aware",
        "candidates": "all",
    }
    return CandidatesConfig(**(given | changes))


def test_siblings_continue_the_same_beginning() -> None:
    assert siblings(ROWS) == [{1, 4}, {2, 3}, {1, 4}, {2, 3}, {1, 4}, {2}, {1}]
    assert own_labels(ROWS) == [{1}, {2}, {1}, {3}, {4}, {2}, {1}]


def test_margin_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0], [0.0, 3.0, 0.0]])
    tokens = torch.tensor([0, 0, 1])
    alone = (torch.tensor([0, 1, 2]), tokens)
    assert margin_shortfall(logits, tokens, alone, 1.0).tolist() == [0.5, 0.5, 0.0]
    # The sibling, token 1, does not compete in the first row: the gap is 2 there.
    with_sibling = (torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 0, 1]))
    assert margin_shortfall(logits, tokens, with_sibling, 1.0).tolist() == [0.0, 0.5, 0.0]


def test_vocabulary_suppression_equals_its_definition() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([0, 3, 3, 8])
    p = logits.softmax(-1)
    expected = [-sum(torch.log(1 - p[row, v]) for v in range(9) if v != tokens[row]) for row in range(4)]
    found = vocabulary_suppression(logits, (torch.arange(4), tokens))
    assert torch.allclose(found, torch.stack(expected))


@pytest.mark.parametrize("lead", [30.0, 200.0])
def test_vocabulary_suppression_where_a_competitor_has_all(lead: float) -> None:
    """In float32 1 − p is 0 there; the loss is what the others have together, and pulls the competitor down."""
    logits = torch.zeros(1, 5)
    logits[0, 2] = lead
    logits.requires_grad_()
    loss = vocabulary_suppression(logits, (torch.tensor([0]), torch.tensor([0])))
    loss.sum().backward()
    assert loss.item() == pytest.approx(lead - torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert logits.grad is not None and logits.grad[0, 2] == pytest.approx(1.0, abs=1e-4)
    assert logits.grad.isfinite().all()


def test_no_suppression_and_literal_competitors() -> None:
    labels = Labels.of(ROWS, "cpu")
    logits = torch.zeros(7, 10)
    assert suppression(ROWS, config(suppression="none"), "cpu")(logits, labels).tolist() == [0.0] * 7
    # All logits equal: the gap to any competitor is 0, the shortfall is the margin.
    assert suppression(ROWS, config(), "cpu")(logits, labels).tolist() == [1.0] * 7
    # A model that puts candidates ahead of all else satisfies the aware margin, and can never satisfy the literal one.
    for read, tokens in enumerate(siblings(ROWS)):
        logits[read, sorted(tokens)] = 5.0
    assert suppression(ROWS, config(), "cpu")(logits, labels).tolist() == [0.0] * 7
    literal = suppression(ROWS, config(competitors="literal"), "cpu")(logits, labels)
    assert literal.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
