import itertools
from math import comb, prod

import pytest

from fpbench.metrics.claims import claim, poisson_binomial_tail


def test_tail_is_the_binomial_where_all_are_equal():
    tail = poisson_binomial_tail([0.3] * 6)
    for k in range(7):
        assert tail[k] == pytest.approx(sum(comb(6, j) * 0.3**j * 0.7 ** (6 - j) for j in range(k, 7)), rel=1e-12)


def test_tail_counts_every_outcome():
    q = [0.01, 0.5, 0.9, 0.2]
    for k, tail in enumerate(poisson_binomial_tail(q)):
        outcomes = (o for o in itertools.product((0, 1), repeat=4) if sum(o) >= k)
        total = sum(prod(x if hit else 1 - x for x, hit in zip(q, o, strict=True)) for o in outcomes)
        assert tail == pytest.approx(total, rel=1e-12)


def test_small_tails_keep_their_digits():
    assert poisson_binomial_tail([0.01] * 10)[10] == pytest.approx(1e-20, rel=1e-9)


@pytest.mark.parametrize(("level", "threshold"), [(1e-3, 3), (1e-6, 5)])
def test_threshold_of_ten_fingerprints_at_the_floor(level, threshold):
    found = claim([1.0] * 10, [[0.0] * 10], level)
    assert found.threshold == threshold
    assert found.power == 1.0
    assert found.p_value == pytest.approx(1e-20, rel=1e-9)
    assert found.null == (0.01,) * 10


def test_null_is_the_largest_rate_of_any_model():
    found = claim([0.5, 0.5], [[0.2, 0.0], [0.0, 0.005], [0.1, 0.3]], 0.1)
    assert found.null == (0.2, 0.3)
    assert found.largest_null == pytest.approx(0.4)
    # P(K ≥ 2) = 0.06 <= 0.1 < P(K ≥ 1) = 0.44
    assert found.threshold == 2
    assert found.power == pytest.approx(0.25)
    # Half of all runs give one match or more.
    assert found.p_value == pytest.approx(0.44)


def test_no_threshold_where_even_all_matches_are_no_evidence():
    found = claim([1.0], [[0.0]], 1e-3)
    assert found.threshold is None and found.power == 0.0


def test_an_unrelated_model_is_not_claimed():
    found = claim([0.0] * 10, [[0.0] * 10], 1e-3)
    assert found.p_value == 1.0 and found.power == 0.0


@pytest.mark.parametrize(
    ("p", "null", "level"), [([], [[]], 0.1), ([0.5], [], 0.1), ([0.5], [[0, 0]], 0.1), ([0.5], [[0]], 1)]
)
def test_wrong_shapes_and_levels_are_refused(p, null, level):
    with pytest.raises(ValueError, match="expected"):
        claim(p, null, level)
