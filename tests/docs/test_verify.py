"""docs/verify.md: the numbers of the sequential test."""

import pytest

from fpbench.metrics.claims import FLOOR
from fpbench.ownership.sequential import CARRIED, SequentialTest
from tests.docs.markdown import read

DOCUMENT = " ".join(read("verify.md").split())
TEST = SequentialTest((FLOOR,) * 10, 1e-3)


def test_the_rates_are_those_of_the_code():
    assert f"it is never taken below {FLOOR}" in DOCUMENT and FLOOR == 0.01
    assert f"A match multiplies it by {CARRIED:g}/q̄, a miss by {CARRIED:g}/(1 − q̄)" in DOCUMENT


@pytest.mark.parametrize("matches", [(True, True, False), (True, False, True), (False, True, True)])
def test_two_matches_among_the_first_three_are_enough(matches):
    assert "Two matches among the first three are enough at the usual level and q̄ = 0.01" in DOCUMENT
    assert TEST.claimed_at(matches) > 0
    assert TEST.claimed_at([True, False, False]) == 0


def test_three_of_ten_are_enough_in_any_order():
    assert "Three of ten at the usual level" in DOCUMENT and TEST.threshold == 3
    assert TEST.claimed_at([False] * 7 + [True] * 3) == 10
    assert TEST.claimed_at([False] * 8 + [True] * 2) == 0
