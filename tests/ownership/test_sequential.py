import itertools
from math import log

import numpy as np
import pytest

from fpbench.metrics.claims import poisson_binomial_tail
from fpbench.ownership.sequential import SequentialTest, fingerprints_needed, null_rates

TEN = (0.01,) * 10
UNEQUAL = (0.01, 0.3, 0.02, 0.49, 0.05, 0.01, 0.1, 0.2, 0.01, 0.4)


def patterns(n: int) -> np.ndarray:
    return np.array(list(itertools.product((False, True), repeat=n)))


def false_claims(test: SequentialTest, rates: tuple[float, ...]) -> float:
    """Exactly, by going through every pattern of responses."""
    every = patterns(len(rates))
    chance = np.where(every, rates, 1 - np.array(rates)).prod(axis=1)
    return float(chance[test.claimed_at(every) > 0].sum())


@pytest.mark.parametrize("level", [0.05, 1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("null", [TEN, UNEQUAL, (0.01,), (0.01, 0.01), (0.2,) * 8, (0.49,) * 12])
def test_the_false_claim_probability_is_at_most_the_level(null, level):
    test = SequentialTest(null, level)
    assert false_claims(test, null) <= level
    # A model that matches less often than the null rates allow is claimed less often.
    less = tuple(rate * factor for rate, factor in zip(null, itertools.cycle((0.0, 1.0, 0.5))))
    assert false_claims(test, less) <= false_claims(test, null)


@pytest.mark.parametrize(("level", "most"), [(1e-3, 124), (1e-2, 1074)])
@pytest.mark.parametrize("null", [TEN, UNEQUAL, (0.01,) * 50])
def test_a_hundred_thousand_models_without_the_fingerprints(null, level, most):
    matches = np.random.default_rng(42).random((100_000, len(null))) < np.array(null)
    assert 0 < (SequentialTest(null, level).claimed_at(matches) > 0).sum() <= most


def test_a_carrier_is_claimed_after_two_or_three_questions():
    matches = np.random.default_rng(42).random((100_000, 10)) < 0.9
    at = SequentialTest(TEN, 1e-3).claimed_at(matches)
    assert (at > 0).mean() >= 0.99
    assert np.median(np.where(at > 0, at, 11)) <= 3


def test_a_faint_carrier_is_claimed_in_a_third_of_all_tests():
    matches = np.random.default_rng(42).random((100_000, 10)) < 0.2
    claimed = SequentialTest(TEN, 1e-3).claimed_at(matches) > 0
    assert claimed.mean() >= 0.3
    # Three matches of ten are enough in whatever order.
    assert claimed[matches.sum(axis=1) >= 3].all()


def test_every_order_of_three_matches_of_ten_claims():
    every = patterns(10)
    claimed = SequentialTest(TEN, 1e-3).claimed_at(every) > 0
    count = every.sum(axis=1)
    assert claimed[count >= 3].all() and not claimed[count < 2].any()
    # Two are enough if at most one miss came before the second.
    two = every[(count == 2) & claimed]
    assert {tuple(np.flatnonzero(row)) for row in two} == {(0, 1), (0, 2), (1, 2)}


def test_evidence_is_the_likelihood_ratio():
    test = SequentialTest((0.01, 0.2, 0.4), 1e-3)
    expected = [log(0.5 / 0.01), log(0.5 / 0.01) + log(0.5 / 0.8), log(0.5 / 0.01 * 0.5 / 0.8 * 0.5 / 0.4)]
    assert test.evidence([True, False, True]) == pytest.approx(expected)
    assert test.claimed_at([]) == 0


def test_a_later_response_never_takes_a_claim_back():
    test, every = SequentialTest(UNEQUAL, 1e-2), patterns(10)
    whole = test.claimed_at(every)
    for asked in range(1, 11):
        early = test.claimed_at(every[:, :asked])
        assert (early == np.where(whole <= asked, whole, 0)).all()


def test_the_ratio_has_all_of_the_level_where_no_number_of_matches_would_do():
    test = SequentialTest((0.4,), 1e-3)
    assert test.threshold is None and test.bound == pytest.approx(log(1000))


@pytest.mark.parametrize(("null", "level"), [((), 0.1), ((0.5,), 0.1), ((0.0,), 0.1), ((0.1,), 0.0), ((0.1,), 1.0)])
def test_what_is_no_test_is_refused(null, level):
    with pytest.raises(ValueError, match="expected a level"):
        SequentialTest(null, level)


def test_null_rates_are_the_largest_of_any_model_and_at_least_the_floor():
    assert null_rates([[0.2, 0.0], [0.1, 0.005]], 2) == (0.2, 0.01)
    assert null_rates([], 3) == (0.01, 0.01, 0.01)


@pytest.mark.parametrize(("matched", "asked"), [(1, 10), (2, 10), (1, 30), (2, 2), (3, 40)])
def test_the_number_needed_is_the_first_that_claims_half_of_the_time(matched, asked):
    needed = fingerprints_needed(matched, asked, [0.01] * asked, 1e-3)
    assert needed is not None and needed > asked

    def power(count: int) -> float:
        threshold = SequentialTest((0.01,) * count, 1e-3).threshold
        return 0.0 if threshold is None else poisson_binomial_tail([matched / asked] * count)[threshold]

    assert power(needed) >= 0.5
    assert all(power(count) < 0.5 for count in range(asked + 1, needed))
    at = SequentialTest((0.01,) * needed, 1e-3).claimed_at(
        np.random.default_rng(1).random((20_000, needed)) < matched / asked
    )
    assert (at > 0).mean() > 0.49


def test_no_number_is_needed_where_none_would_do():
    assert fingerprints_needed(0, 10, TEN, 1e-3) is None
    assert fingerprints_needed(1, 10, (0.1,) * 10, 1e-3) is None
    assert fingerprints_needed(0, 0, (), 1e-3) is None
