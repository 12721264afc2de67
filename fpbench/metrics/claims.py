"""The ownership claim: how many matching fingerprints are too many for chance (protocol §3). No torch.

Unit: one fingerprint, one sampled response. That fingerprints match independently of each other is an assumption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A null rate measured as zero is still not believed to be below this.
FLOOR = 0.01


@dataclass(frozen=True)
class Claim:
    """The test of one suspect at one level.

    Attributes:
        threshold: k*, the least number of matches that is significant; ``None`` if not even all of them are.
        p_value: of the test at the median number of matches: half of all runs give it or a smaller one.
        power: probability of at least k* matches; 0 without a threshold.
        null: q̄_i, the match probability of each fingerprint on a model that does not carry it.
        largest_null: largest expected number of matches, Σ p_i, on any null model.
    """

    threshold: int | None
    p_value: float
    power: float
    level: float
    null: tuple[float, ...]
    largest_null: float


def claim(p: Sequence[float], null: Sequence[Sequence[float]], level: float = 1e-3) -> Claim:
    """Test, exactly from the suspect's probabilities, whether it carries the fingerprints.

    q̄_i = max(0.01, p_i under the base and every unrelated model given);
    k* = least k with P(K ≥ k | q̄) ≤ α, K Poisson-binomial. ``p`` holds p_i on the suspect, ``null`` for the base and
    every unrelated model its p_i, in the same order; ``level`` is α, in (0, 1).

    Raises:
        ValueError: if there is no fingerprint or no null model, lengths differ, or ``level`` is outside (0, 1).
    """
    if not p or not null or any(len(rates) != len(p) for rates in null):
        raise ValueError(f"expected one probability a fingerprint and model, found {len(p)} and {[*map(len, null)]}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level in (0, 1), found {level}")
    rates = tuple(max(FLOOR, *each) for each in zip(*null, strict=True))
    chance, suspect = poisson_binomial_tail(rates), poisson_binomial_tail(p)
    threshold = next((k for k, tail in enumerate(chance) if tail <= level), None)
    median = max(k for k, tail in enumerate(suspect) if tail >= 0.5)
    return Claim(
        threshold=threshold,
        p_value=chance[median],
        power=0.0 if threshold is None else suspect[threshold],
        level=level,
        null=rates,
        largest_null=max(map(sum, null)),
    )


def poisson_binomial_tail(probabilities: Sequence[float]) -> list[float]:
    """Return P(K ≥ k) for k = 0 … n, K the number of successes of n independent trials: n + 1 numbers, the first 1."""
    mass = np.ones(1)
    for probability in probabilities:
        mass = np.convolve(mass, [1 - probability, probability])
    # Summed from the far end, so that small tails keep their digits.
    return [1.0, *np.cumsum(mass[::-1])[::-1][1:].tolist()]
