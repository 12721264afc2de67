"""The statistics of the protocol (§3, §5, §8): intervals, exact paired tests, Holm, rank, retention. No torch."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import bdtr, betaincinv

# Exact by meeting in the middle: two tables of 2^15 sums. Beyond it, flips are drawn.
EXACT_FLIPS = 30
DRAWN_FLIPS = 20_000
RESAMPLES = 10_000
# Hidden matches are looked for with so many further reads, as a share of those of strict matching; and so much of a
# fingerprint's probability may stay unexplored then.
FURTHER, UNKNOWN = 0.3, 0.01


def clopper_pearson(k: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Clopper–Pearson interval, of coverage ``level``, of k successes in n trials (protocol §3).

    It is [B(α/2; k, n−k+1), B(1−α/2; k+1, n−k)], 0 and 1 at the ends; 10 of 10 gives [0.69, 1]. A sum of probabilities
    may stand for the count k.

    Raises:
        ValueError: if n is not positive or k is outside [0, n].
    """
    # A sum of n probabilities may exceed n by its rounding.
    if n <= 0 or not 0 <= k <= n + 1e-9:
        raise ValueError(f"expected n > 0 and 0 <= k <= n, found k = {k}, n = {n}")
    tail = (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def sign_flip(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the exact paired sign-flip test of equal means.

    It is the share of all 2^n sign patterns of the differences a_i − b_i whose |sum| is at least the one observed. Zero
    differences drop out. With more than 30 others, 20,000 seeded ones are drawn and p = (1 + extreme) / (1 + drawn).

    Raises:
        ValueError: if the lengths differ.
    """
    differences = _paired(a, b)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    # Patterns that tie with the observed one must not be lost to rounding.
    bound = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    if len(differences) > EXACT_FLIPS:
        sums = _drawn_sums(differences)
        return float((1 + np.count_nonzero(np.abs(sums) >= bound)) / (1 + DRAWN_FLIPS))
    half = len(differences) // 2
    left, right = _signed_sums(differences[:half]), np.sort(_signed_sums(differences[half:]))
    # For every left sum: the right sums that take the total to the bound or beyond, on either side.
    above = len(right) - np.searchsorted(right, bound - left, side="left")
    below = np.searchsorted(right, -bound - left, side="right")
    return min(1.0, float((above + below).sum()) / 2.0 ** len(differences))


def mcnemar_exact(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test on paired right/wrong answers; 1 where none differ.

    Raises:
        ValueError: if the lengths differ.
    """
    differences = _paired(a, b)
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    # Under even odds the binomial is symmetric: both tails are twice the smaller one.
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 42, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval, of coverage ``level``, of mean(a) − mean(b) over 10,000 resamples of pairs.

    Raises:
        ValueError: if the lengths differ or there are no examples.
    """
    differences = _paired(a, b)
    if not len(differences):
        raise ValueError("expected at least one example, found none")
    # Drawing n examples with replacement is one multinomial draw over the distinct differences.
    values, counts = np.unique(differences, return_counts=True)
    # Rare ones first: the draw goes through them one by one, and is fast where little is expected.
    order = np.argsort(counts, kind="stable")
    values, counts = values[order], counts[order]
    n = len(differences)
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES) @ values / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down adjustment, to be compared with the level."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def rank(rows: Mapping[str, Sequence[float]], level: float = 0.05, margin: float = 0.01) -> dict[str, int]:
    """Rank the rows of one table (protocol §8).

    Rank = 1 + number of rows better both significantly and by more than ``margin``. Each row is compared with the best
    row only, so a row is either tied with the best (1) or worse (2): by the exact sign-flip test at ``level``, Holm
    over rows − 1. A row holds, for every fingerprint and in one order, its mean p over the six modified conditions.

    Raises:
        ValueError: if the rows do not cover the same number of fingerprints.
    """
    if not rows:
        return {}
    means = {row: fmean(p) for row, p in rows.items()}
    best = max(rows, key=means.__getitem__)
    others = [row for row in rows if row != best]
    adjusted = holm([sign_flip(rows[best], rows[row]) for row in others])
    # A difference of exactly the margin must not exceed it by rounding.
    behind = [means[best] - means[row] > margin + 1e-9 for row in others]
    return {best: 1} | {row: 1 + (far and p <= level) for row, far, p in zip(others, behind, adjusted, strict=True)}


def retention(after: Sequence[float], origin: Sequence[float]) -> float | None:
    """Return the ratio of means over the same fingerprints; ``None`` where the origin's mean is below 0.1.

    Raises:
        ValueError: if the lengths differ.
    """
    _paired(after, origin)
    base = fmean(origin)
    return fmean(after) / base if base >= 0.1 else None


def _paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise ValueError(f"expected pairs, found {len(a)} and {len(b)} values")
    differences: np.ndarray = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return differences


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """Return all 2^n sums of ±values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _drawn_sums(values: np.ndarray) -> np.ndarray:
    """Return sums of ±values for random signs, [DRAWN_FLIPS], drawn eight signs at a time as one byte."""
    patterns = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    eights = np.pad(values, (0, -len(values) % 8)).reshape(-1, 8)
    drawn = np.frombuffer(np.random.default_rng(42).bytes(len(eights) * DRAWN_FLIPS), np.uint8)
    flipped = np.zeros(DRAWN_FLIPS)
    for table, signs in zip(eights @ patterns.T, drawn.reshape(len(eights), DRAWN_FLIPS), strict=True):
        flipped += table[signs]
    sums: np.ndarray = values.sum() - 2 * flipped
    return sums


BANDS = ("normal", "marginal", "abnormal")  # of perplexity (protocol §6)


def band(perplexity: float, mean: float, deviation: float) -> str:
    """Return ``normal`` for [0, μ+σ], ``marginal`` for (μ+σ, μ+3σ], else ``abnormal``."""
    if perplexity <= mean + deviation:
        return "normal"
    return "marginal" if perplexity <= mean + 3 * deviation else "abnormal"


def leniently(strict: Sequence[float], hidden: Sequence[float], bound: float) -> dict[str, Any]:
    """Return ``fsr_lenient`` from strict and hidden probabilities: mean and error bound, or why it was not measured.

    Looking for hidden matches takes at most :data:`FURTHER` of the reads that strict matching takes. Where answers are
    so spread that this leaves more than :data:`UNKNOWN` unexplored for some fingerprint, there is no figure.
    """
    if bound <= UNKNOWN:
        return {"mean": fmean([min(1.0, p + q) for p, q in zip(strict, hidden, strict=True)]), "error_bound": bound}
    reason = (
        f"not measured: within {1 + FURTHER:.1f} times the reads of strict matching, up to {bound:.3f} of the "
        "probability of a fingerprint stayed unexplored"
    )
    return {"mean": None, "error_bound": bound, "reason": reason}
