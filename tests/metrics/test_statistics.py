import itertools
import subprocess
import sys

import pytest

from fpbench.metrics.statistics import (
    clopper_pearson,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    rank,
    retention,
    sign_flip,
)


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (10, 10, (0.6915, 1.0)),
        (0, 10, (0.0, 0.3085)),
        (5, 10, (0.1871, 0.8129)),
        (100, 100, (0.9638, 1.0)),
        (1, 20, (0.0013, 0.2487)),
    ],
)
def test_clopper_pearson_has_the_published_values(k, n, expected):
    assert clopper_pearson(k, n) == pytest.approx(expected, abs=6e-5)


def test_clopper_pearson_takes_sums_of_probabilities():
    lower, middle, upper = clopper_pearson(7, 10), clopper_pearson(7.5, 10), clopper_pearson(8, 10)
    assert lower[0] < middle[0] < upper[0] and lower[1] < middle[1] < upper[1]
    assert clopper_pearson(10 + 1e-12, 10)[1] == 1.0
    with pytest.raises(ValueError, match="k = 11"):
        clopper_pearson(11, 10)


def brute_force(a, b):
    differences = [x - y for x, y in zip(a, b, strict=True)]
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(each >= abs(sum(differences)) - 1e-9 for each in sums) / len(sums)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.9, 0.8, 1.0, 0.7, 0.35], [0.1, 0.85, 0.3, 0.7, 0.2]),
        ([0.1] * 7, [0.3] * 7),
        ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]),
        ([0.5], [0.25]),
    ],
)
def test_sign_flip_counts_all_patterns(a, b):
    assert sign_flip(a, b) == pytest.approx(brute_force(a, b), abs=1e-12)
    assert sign_flip(b, a) == sign_flip(a, b)


def test_sign_flip_by_hand():
    assert sign_flip([1.0] * 10, [0.0] * 10) == pytest.approx(2 / 1024)
    assert sign_flip([0.4] * 10, [0.4] * 10) == 1.0
    # Thirty equal steps: only the two patterns of one sign are as extreme, of 2^30.
    assert sign_flip([1.0] * 30, [0.0] * 30) == pytest.approx(2 / 2**30)
    drawn = sign_flip([1.0, 0.0] * 21, [0.0, 1.0] * 20 + [0.0, 0.0])
    assert 0.8 < drawn <= 1.0
    with pytest.raises(ValueError, match="pairs"):
        sign_flip([1.0], [1.0, 2.0])


def test_mcnemar_by_hand():
    # 8 gained, 1 lost: two-sided binomial, 2 · (1 + 9) / 2^9.
    a, b = [True] * 8 + [False] + [True] * 5, [False] * 8 + [True] + [True] * 5
    assert mcnemar_exact(a, b) == pytest.approx(20 / 512)
    assert mcnemar_exact([True, False], [True, False]) == 1.0


def test_bootstrap_covers_the_difference_and_repeats():
    a, b = [1.0] * 70 + [0.0] * 30, [1.0] * 50 + [0.0] * 50
    low, high = paired_bootstrap(a, b, seed=1)
    # Standard error of a mean of Bernoulli(0.2) over 100 examples: 0.04.
    assert low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.015) and high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.015)
    assert paired_bootstrap(a, b, seed=1) == (low, high)
    assert paired_bootstrap(a, a) == (0.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_compares_each_row_with_the_best_only():
    best = [0.9] * 10
    close = [0.9] * 8 + [0.8, 0.8]
    worse, worst = [0.5] * 10, [0.1] * 10
    ranks = rank({"worst": worst, "close": close, "best": best, "worse": worse})
    assert ranks == {"best": 1, "close": 1, "worse": 2, "worst": 2}
    assert rank({"only": best}) == {"only": 1} and rank({}) == {}


def test_rank_pays_for_many_rows():
    # Six fingerprints: the least p-value is 2/64; alone it is significant, among two others it is not.
    assert rank({"a": [0.9] * 6, "b": [0.1] * 6}) == {"a": 1, "b": 2}
    assert set(rank({"a": [0.9] * 6, "b": [0.1] * 6, "c": [0.2] * 6}).values()) == {1}


def test_a_rank_is_lost_by_more_than_a_point_only():
    best = [1.0] * 10
    assert rank({"best": best, "near": [0.99] * 10}) == {"best": 1, "near": 1}, "significant, and of no weight"
    assert rank({"best": best, "far": [0.9899] * 10}) == {"best": 1, "far": 2}
    assert rank({"best": best, "lucky": [1.0] * 9 + [0.0]})["lucky"] == 1, "ten points, and not significant"


def test_retention_is_a_ratio_of_means_or_nothing():
    assert retention([0.5, 0.1], [1.0, 0.2]) == pytest.approx(0.5)
    assert retention([0.05, 0.0], [0.1, 0.05]) is None
    with pytest.raises(ValueError, match="pairs"):
        retention([0.5], [0.5, 0.5])


def test_no_torch():
    code = "import sys, fpbench.metrics.statistics, fpbench.metrics.claims; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
