"""What is left of a fingerprint when a thief may spend so much, and what its removal costs him. No torch.

Prices are shares of the model's quality lost, in [0, 1]. F is the mean probability of a match over fingerprints.
Definitions: docs/adversaries.md, "What is left, and the removal price".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean

from fpbench.metrics.claims import FLOOR
from fpbench.metrics.statistics import clopper_pearson

BUDGETS = (0.01, 0.10)  # ε of FSR@ε
LIMIT = 0.25  # beyond it, a removal price is censored
POWER = 0.5  # of the ownership claim; below it, the fingerprint is removed
SLACK = 1e-9  # a price at a budget must not exceed it by rounding


@dataclass(frozen=True)
class Attempt:
    """What a thief may do: an adversary at one dose, measured on every seed; or nothing, at no price.

    Attributes:
        condition: its name, with doses.
        p: by seed, p_i of every fingerprint.
        price: by seed.
    """

    condition: str
    p: Mapping[int, Sequence[float]]
    price: Mapping[int, float]

    def left(self, seeds: Sequence[int]) -> float:
        """Return F, the mean over seeds."""
        return fmean(fmean(self.p[seed]) for seed in seeds)

    def paid(self, seeds: Sequence[int]) -> float:
        """Return the mean price over seeds."""
        return fmean(self.price[seed] for seed in seeds)


@dataclass(frozen=True)
class Step:
    """What a thief does from a budget on: an attempt for every seed, in seed order."""

    budget: float
    chosen: Mapping[int, Attempt]

    @property
    def p(self) -> dict[int, Sequence[float]]:
        """By seed, what is left of p_i."""
        return {seed: attempt.p[seed] for seed, attempt in self.chosen.items()}

    @property
    def fsr(self) -> float:
        """Mean over all fingerprints of all seeds."""
        return fmean(p for found in self.p.values() for p in found)

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper–Pearson 95 % over the same fingerprints."""
        p = [p for found in self.p.values() for p in found]
        return clopper_pearson(sum(p), len(p))

    @property
    def price(self) -> float:
        """Attained price: what the choices cost on the seeds that are scored, mean over seeds."""
        return fmean(attempt.price[seed] for seed, attempt in self.chosen.items())


@dataclass(frozen=True)
class RemovalPrice:
    """The bracket of attained prices between which the claim is lost.

    Attributes:
        low: largest price at which the claim still holds, below ``high``; 0 where there is none.
        high: smallest price at which its power is below ½; ``None`` where none up to 25 % is: censored.
    """

    low: float
    high: float | None


# Thieves: for the fingerprints of each seed, the seeds on which the thief tunes.

View = Mapping[int, Sequence[int]]


def blind(seeds: Sequence[int]) -> View:
    """Return the blind thief, who knows the method and owns keys of his own: he tunes on all other seeds.

    Raises:
        ValueError: if there is one seed only, and so nothing to tune on.
    """
    if len(seeds) < 2:
        raise ValueError(f"expected two seeds or more, found {len(seeds)}")
    return {seed: [other for other in seeds if other != seed] for seed in seeds}


def oracle(seeds: Sequence[int]) -> View:
    """Return the oracle thief, who tunes on the very fingerprints that are scored: the lower edge."""
    return {seed: [seed] for seed in seeds}


def course(nothing: Attempt, attempts: Sequence[Attempt], thief: View, limit: float = LIMIT) -> list[Step]:
    """Return what a thief does, by ascending budget up to ``limit``, each step from its budget to the next one's.

    For each seed he takes, of the attempts whose mean price on his own seeds is within the budget, the one with the
    least mean F there; of equals the cheapest. To do ``nothing`` is open to him at every budget. The figures of a step
    are those of the seeds that are scored, where price and F may turn out otherwise.
    """
    choices = {seed: _choices([nothing, *attempts], own, limit) for seed, own in thief.items()}
    budgets = sorted({budget for found in choices.values() for budget, _ in found})
    return [Step(budget, {seed: _at(found, budget) for seed, found in choices.items()}) for budget in budgets]


def _choices(attempts: Sequence[Attempt], seeds: Sequence[int], limit: float) -> list[tuple[float, Attempt]]:
    """Return what is chosen by ascending budget: each choice leaves less than every cheaper one."""
    found: list[tuple[float, Attempt]] = []
    least = inf
    for price, left, attempt in sorted(
        ((each.paid(seeds), each.left(seeds), each) for each in attempts), key=lambda one: one[:2]
    ):
        if left < least and price <= limit + SLACK:
            found.append((price, attempt))
            least = left
    return found


def _at(choices: Sequence[tuple[float, Attempt]], budget: float) -> Attempt:
    return [attempt for price, attempt in choices if price <= budget + SLACK][-1]


# What a course comes to.


def within(steps: Sequence[Step], budget: float) -> Step:
    """Return where the thief stands with a budget ε; FSR@ε is its ``fsr``: that at origin if nothing is affordable."""
    return [step for step in steps if step.budget <= budget + SLACK][-1]


def removal_price(steps: Sequence[Step], power: Callable[[int, Sequence[float]], float]) -> RemovalPrice:
    """Return the smallest attained price at which the power of the ownership claim falls below ½.

    ``power`` returns that of the claim on a seed (:func:`fpbench.metrics.claims.claim`), given its p_i; the mean over
    seeds counts. A fingerprint that nobody could claim at origin has a removal price of 0.
    """
    found = [(step.price, fmean(power(seed, p) for seed, p in step.p.items())) for step in steps]
    found = [(price, held) for price, held in found if price <= LIMIT + SLACK]
    high = min((price for price, held in found if held < POWER), default=None)
    held = [price for price, held in found if held >= POWER and (high is None or price < high)]
    return RemovalPrice(max(held, default=0.0), high)


def fingerprint_prices(steps: Sequence[Step], nothing: Attempt) -> dict[int, list[float]]:
    """Return, by seed, the removal price of every fingerprint, at most 25 %.

    That is the least price, on its own seed, at which its p has fallen below half of its value at origin; 0 where that
    is no more than chance is granted, so that there is nothing to remove.
    """
    found = {}
    for seed, before in nothing.p.items():
        prices = [[LIMIT if p > FLOOR else 0.0] for p in before]
        for attempt in (step.chosen[seed] for step in steps):
            for own, now, then in zip(prices, attempt.p[seed], before, strict=True):
                if now < then / 2:
                    own.append(attempt.price[seed])
        found[seed] = [min(own) for own in prices]
    return found
