"""Asking as few fingerprints as the evidence needs: a sequential test with a bounded false-claim probability. No torch.

Unit: one fingerprint, one sampled response (protocol §3). Null hypothesis: whatever the other fingerprints did, the
response to fingerprint i begins with one of its targets with a probability of at most q̄_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, inf, log, perm
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from fpbench.metrics.claims import FLOOR, poisson_binomial_tail

CARRIED = 0.5  # Wald's alternative: a model with the fingerprints answers with a target at least half of the time
MOST = 10_000  # further fingerprints that are looked at before the number needed counts as out of reach
STEP = 0.001  # between the chance rates that a claim is tried against
LARGEST = 14  # fingerprints whose answers hang together that the permutation test still counts exactly


@dataclass(frozen=True)
class SequentialTest:
    """A sequential test, fixed before the first question.

    After any response, a claim is made as soon as one of two things is true:

    * the likelihood ratio Π (0.5/q̄_i on a match, 0.5/(1−q̄_i) on a miss) has reached 1/(α−s), or
    * k* fingerprints have matched, where k* is the least k with s = P(K ≥ k | q̄) ≤ α/2, K Poisson-binomial over all
      fingerprints that may be asked; without such a k there is no k*, and s = 0.

    The false-claim probability is at most α. Under the null hypothesis the ratio is a non-negative supermartingale that
    starts at 1 (as q̄_i < 0.5, a match probability below q̄_i only lowers its mean), so it ever reaches 1/(α−s) with
    probability α−s at most (Ville's inequality). Matches only add up, so k* is reached at some time only if it is
    reached at the end, which has probability s at most: K is stochastically largest at q̄. The two add up to α.
    Fingerprints that are never asked count as misses, so stopping early for whatever other reason claims less.

    Attributes:
        null: q̄_i of every fingerprint that may be asked, in the order of asking, each below 0.5.
        level: α.
    """

    null: tuple[float, ...]
    level: float

    def __post_init__(self) -> None:
        """Refuse a level outside (0, 1), no fingerprint, or a rate outside (0, 0.5) with a ValueError."""
        if not 0 < self.level < 1 or not self.null or not all(0 < rate < CARRIED for rate in self.null):
            raise ValueError(f"expected a level in (0, 1) and rates in (0, 0.5), found {self.level}, {self.null}")

    @property
    def threshold(self) -> int | None:
        """k*, the number of matches that is enough in any order; ``None`` if not even all of them are."""
        tail = poisson_binomial_tail(self.null)
        return next((k for k, chance in enumerate(tail) if chance <= self.level / 2), None)

    @property
    def bound(self) -> float:
        """The log-likelihood ratio at which a claim is made: ln 1/(α−s)."""
        spent = 0.0 if self.threshold is None else poisson_binomial_tail(self.null)[self.threshold]
        return -log(self.level - spent)

    def evidence(self, matches: Any) -> NDArray[np.float64]:
        """Return the log-likelihood ratio (nats) after every response, [..., m].

        Args:
            matches: [..., m] booleans, in the order of asking; m at most the number of fingerprints.
        """
        hit = np.asarray(matches, dtype=bool)
        null = np.array(self.null[: hit.shape[-1]])
        gains: NDArray[np.float64] = np.where(hit, np.log(CARRIED / null), np.log(CARRIED / (1 - null)))
        return gains.cumsum(axis=-1)

    def claimed_at(self, matches: Any) -> NDArray[np.int64]:
        """Return the number, from 1, of the response after which the claim is made, [...]; 0 for no claim.

        Args:
            matches: [..., m] as in :meth:`evidence`.
        """
        hit = np.asarray(matches, dtype=bool)
        if hit.shape[-1] == 0:
            return np.zeros(hit.shape[:-1], dtype=np.int64)
        enough = inf if self.threshold is None else self.threshold
        reached = (self.evidence(hit) >= self.bound) | (hit.cumsum(axis=-1) >= enough)
        return np.where(reached.any(axis=-1), reached.argmax(axis=-1) + 1, 0)


def null_rates(models: Sequence[Sequence[float]], count: int) -> tuple[float, ...]:
    """Return q̄_i = max(0.01, p_i under every null model given); ``models`` holds the p_i of each, or nothing."""
    return tuple(max([FLOOR, *(rates[number] for rates in models)]) for number in range(count))


def fingerprints_needed(matched: int, asked: int, null: Sequence[float], level: float) -> int | None:
    """Return how many fingerprints a set would need for a claim, were they to match as often as those asked.

    The least N above ``asked`` for which at least half of all runs match k*(N) times or more: K binomial at the rate
    seen, and k*(N) that of :class:`SequentialTest` for N fingerprints at the mean of the null rates. (At an equal mean
    the binomial tail is the heaviest, so unequal rates need no more.)

    Args:
        matched: of the fingerprints asked.
        asked: how many were asked.
        null: their q̄_i, in [0.01, 0.5).
        level: α.

    Returns:
        N, or ``None`` if the rate seen does not exceed the null rate, or 10,000 fingerprints would not do.
    """
    if not asked or matched / asked <= (rate := float(np.mean(null))):
        return None
    threshold = 1
    for count in range(asked + 1, asked + MOST):
        # bdtrc(k, n, p) = P(K > k).
        while threshold <= count and bdtrc(threshold - 1, count, rate) > level / 2:
            threshold += 1
        if threshold <= count and (matched == asked or bdtrc(threshold - 1, count, matched / asked) >= 0.5):
            return count
    return None


def tolerated_chance(matches: Sequence[bool], planned: int, level: float) -> float | None:
    """Return the largest rate at which chance may match every fingerprint so that these responses still make a claim.

    Rates are tried upwards from 0.01 in steps of 0.001, until :class:`SequentialTest` with the same q̄ for every one of
    the ``planned`` fingerprints makes no claim. The rate is below 0.5; ``None`` if there is no claim at 0.01 either.

    Args:
        matches: of the fingerprints asked, in the order of asking.
        planned: fingerprints that might have been asked.
        level: α.
    """
    tolerated = None
    for steps in range(round(FLOOR / STEP), round(CARRIED / STEP)):
        rate = round(steps * STEP, 3)
        if not SequentialTest((rate,) * planned, level).claimed_at(matches):
            break
        tolerated = rate
    return tolerated


# The permutation test: do answers go to the very triggers that a seeded permutation dealt them to?


def permutation_p_value(begins: Sequence[Sequence[bool]], own: Sequence[int]) -> float | None:
    """Return the probability of as many matches or more, had the targets been dealt to the triggers at random.

    The responses are taken as they are; chance lies in the dealing alone, so no null rate is needed. For k matches
    of responses that begin with no other fingerprint's target, all others silent, this is (n−k)!/n!.

    With r_j the number of ways to pick j responses and j different fingerprints whose targets they begin with,
    P(T ≥ k) = Σ_{j≥k} (−1)^{j−k} C(j−1, k−1) r_j (n−j)!/n!.

    Args:
        begins: [m, n]: whether the response to the i-th fingerprint asked begins with a target of the j-th of the set.
        own: the place in the set, from 0, of every fingerprint asked.

    Returns:
        The p-value for a number of questions m that was fixed beforehand; ``None`` if so many fingerprints share their
        answers that it would take too long to count.
    """
    count = len(begins[0]) if begins else 0
    matched = sum(row[place] for row, place in zip(begins, own, strict=True))
    if not matched:
        return 1.0
    ways = np.array([1], dtype=object)  # whole numbers of any size
    for rows in _apart(begins):
        if len({column for row in rows for column in row}) > LARGEST:
            return None
        ways = np.convolve(ways, np.array(_placements(rows), dtype=object))  # a product of polynomials
    total = Fraction(0)
    for picked in range(matched, len(ways)):
        total += (
            (-1) ** (picked - matched) * comb(picked - 1, matched - 1) * Fraction(ways[picked], perm(count, picked))
        )
    return float(total)


def _apart(begins: Sequence[Sequence[bool]]) -> list[list[frozenset[int]]]:
    """Return the fingerprints that each response fits, grouped so that no two groups share one."""
    groups: list[list[frozenset[int]]] = []
    for fits in (frozenset(column for column, fit in enumerate(row) if fit) for row in begins):
        if fits:
            touching = [group for group in groups if any(fits & other for other in group)]
            groups = [group for group in groups if group not in touching]
            groups.append([fits, *(other for group in touching for other in group)])
    return groups


def _placements(rows: Sequence[frozenset[int]]) -> list[int]:
    """Return r_j for j = 0, 1, …: ways to pick j rows and a column of each, no column twice."""
    states = {frozenset[int](): 1}
    for row in rows:
        for used, ways in list(states.items()):
            for column in row - used:
                taken = used | {column}
                states[taken] = states.get(taken, 0) + ways
    counts = [0] * (len(rows) + 1)
    for used, ways in states.items():
        counts[len(used)] += ways
    return counts
