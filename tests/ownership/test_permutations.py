import itertools
from math import factorial

import numpy as np
import pytest

from fpbench.ownership.sequential import permutation_p_value


def by_counting(begins: np.ndarray, own: list[int]) -> float:
    """Deal the targets in every possible way."""
    observed = sum(row[place] for row, place in zip(begins, own, strict=True))
    dealings = list(itertools.permutations(range(begins.shape[1]), len(begins)))
    as_many = sum(sum(row[place] for row, place in zip(begins, each, strict=True)) >= observed for each in dealings)
    return as_many / len(dealings)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_share_of_all_dealings(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 7))
    asked = draw.permutation(n)[: draw.integers(1, n + 1)].tolist()
    begins = draw.random((len(asked), n)) < draw.random()
    assert permutation_p_value(begins.tolist(), asked) == pytest.approx(by_counting(begins, asked), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(10, 1), (10, 3), (10, 10), (50, 50), (200, 7)])
def test_others_silent(n, k):
    begins = [[i == j and i < k for j in range(n)] for i in range(n)]
    assert permutation_p_value(begins, range(n)) == pytest.approx(factorial(n - k) / factorial(n), rel=1e-12)


def test_fingerprints_that_were_not_asked_still_take_part_in_the_dealing():
    # Two asked, two matched: 8!/10!, not 0!/2!.
    begins = [[j == place for j in range(10)] for place in (4, 7)]
    assert permutation_p_value(begins, [4, 7]) == pytest.approx(1 / 90)


def test_one_answer_to_everything_is_no_evidence():
    assert permutation_p_value([[j == 3 for j in range(10)]] * 10, range(10)) == 1.0
    assert permutation_p_value([[True] * 5] * 5, range(5)) == 1.0


def test_nothing_matched_and_nothing_asked():
    assert permutation_p_value([[False] * 4] * 4, range(4)) == 1.0
    assert permutation_p_value([], []) == 1.0


def test_what_cannot_be_counted_is_not_shown():
    assert permutation_p_value([[True] * 15] * 15, range(15)) is None
