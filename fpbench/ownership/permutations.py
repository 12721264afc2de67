"""The permutation test: do answers go to the very triggers that a seeded permutation dealt them to? No torch."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb, perm

# Fingerprints whose answers hang together that are still counted exactly.
LARGEST = 14


def permutation_p_value(begins: Sequence[Sequence[bool]], own: Sequence[int]) -> float | None:
    """Probability of as many matches or more, had the targets been dealt to the triggers in another random order.

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
    ways = [1]
    for rows in _apart(begins):
        if len({column for row in rows for column in row}) > LARGEST:
            return None
        ways = _product(ways, _placements(rows))
    total = sum(
        (
            (-1) ** (picked - matched) * comb(picked - 1, matched - 1) * Fraction(ways[picked], perm(count, picked))
            for picked in range(matched, len(ways))
        ),
        Fraction(0),
    )
    return float(total)


def _apart(begins: Sequence[Sequence[bool]]) -> list[list[frozenset[int]]]:
    """The fingerprints that each response fits, grouped so that no two groups share one."""
    groups: list[list[frozenset[int]]] = []
    for fits in (frozenset(column for column, fit in enumerate(row) if fit) for row in begins):
        if fits:
            touching = [group for group in groups if any(fits & other for other in group)]
            groups = [group for group in groups if group not in touching]
            groups.append([fits, *(other for group in touching for other in group)])
    return groups


def _placements(rows: Sequence[frozenset[int]]) -> list[int]:
    """r_j for j = 0, 1, …: ways to pick j rows and a column of each, no column twice."""
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


def _product(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The product of two polynomials, in whole numbers of any size."""
    product = [0] * (len(one) + len(other) - 1)
    for i, first in enumerate(one):
        for j, second in enumerate(other):
            product[i + j] += first * second
    return product
