"""Thieves, budgets and removal prices: cases worked out by hand, and what must hold in every case."""

import random
import subprocess
import sys

import pytest

from fpbench.metrics.claims import claim
from fpbench.metrics.removal import (
    LIMIT,
    Attempt,
    RemovalPrice,
    blind,
    course,
    fingerprint_prices,
    oracle,
    removal_price,
    within,
)
from fpbench.metrics.statistics import clopper_pearson

# Two seeds of two fingerprints. The thief of seed 1 sees only the figures of seed 2, and the other way round.
NOTHING = Attempt("origin", {1: [1.0, 1.0], 2: [1.0, 1.0]}, {1: 0.0, 2: 0.0})
CHEAP = Attempt("cheap", {1: [0.1, 0.3], 2: [0.5, 0.7]}, {1: 0.02, 2: 0.04})
DEAR = Attempt("dear", {1: [0.0, 0.2], 2: [0.0, 0.0]}, {1: 0.10, 2: 0.06})


def names(step):
    return [each.condition for each in step.chosen.values()]


def any_match(seed, p):
    """Power of a claim that one match suffices for."""
    missed = 1.0
    for each in p:
        missed *= 1 - each
    return 1 - missed


def real_power(seed, p):
    return claim(p, [[0.0] * len(p)]).power


def test_the_blind_thief_tunes_on_the_other_seed_and_is_scored_on_this_one():
    steps = course(NOTHING, [CHEAP, DEAR], blind([1, 2]))
    assert [step.budget for step in steps] == [0.0, 0.02, 0.04, 0.06, 0.10]
    assert [names(step) for step in steps] == [
        ["origin", "origin"],
        ["origin", "cheap"],  # 0.02 is what it costs on seed 1, on which the thief of seed 2 tunes
        ["cheap", "cheap"],
        ["dear", "cheap"],
        ["dear", "dear"],
    ]
    assert [step.fsr for step in steps] == pytest.approx([1.0, 0.8, 0.4, 0.35, 0.05])
    assert [step.price for step in steps] == pytest.approx([0.0, 0.02, 0.03, 0.07, 0.08])


def test_the_oracle_tunes_on_what_is_scored():
    steps = course(NOTHING, [CHEAP, DEAR], oracle([1, 2]))
    assert [(step.budget, names(step)) for step in steps] == [
        (0.0, ["origin", "origin"]),
        (0.02, ["cheap", "origin"]),
        (0.04, ["cheap", "cheap"]),
        (0.06, ["cheap", "dear"]),
        (0.10, ["dear", "dear"]),
    ]
    assert [step.fsr for step in steps] == pytest.approx([1.0, 0.6, 0.4, 0.1, 0.05])


def test_fsr_within_a_budget():
    steps = course(NOTHING, [CHEAP, DEAR], blind([1, 2]))
    assert within(steps, 0.01).fsr == 1.0, "nothing is affordable: FSR at origin"
    assert within(steps, 0.05).fsr == pytest.approx(0.4)
    assert within(steps, 0.10).fsr == pytest.approx(0.05), "the budget itself is affordable"
    assert within(steps, 0.10).interval == pytest.approx(clopper_pearson(0.2, 4))


def test_a_price_equal_to_the_budget_but_for_rounding_is_affordable():
    attempt = Attempt("sum", {1: [0.0]}, {1: 0.1 + 0.2 - 0.2})
    assert attempt.price[1] > 0.1
    assert within(course(Attempt("origin", {1: [1.0]}, {1: 0.0}), [attempt], oracle([1])), 0.1).fsr == 0.0


def test_the_removal_price_is_the_bracket_in_which_the_claim_is_lost():
    """Power by step: 1, (1 + 0.85) / 2, (0.37 + 0.85) / 2, (0.2 + 0.85) / 2, (0.2 + 0) / 2."""
    steps = course(NOTHING, [CHEAP, DEAR], blind([1, 2]))
    found = removal_price(steps, any_match)
    assert (found.low, found.high) == pytest.approx((0.07, 0.08))


def test_the_power_is_that_of_the_claim():
    """Three matches of ten are needed: at p = 0.3 that is had with probability 0.617, at p = 0.2 with 0.322."""
    nothing = Attempt("origin", {1: [1.0] * 10}, {1: 0.0})
    attempts = [Attempt("a", {1: [0.3] * 10}, {1: 0.002}), Attempt("b", {1: [0.2] * 10}, {1: 0.043})]
    assert removal_price(course(nothing, attempts, oracle([1])), real_power) == RemovalPrice(0.002, 0.043)


def test_not_reached_is_censored_and_never_the_largest_price_tried():
    nothing = Attempt("origin", {1: [1.0] * 10}, {1: 0.0})
    holds = Attempt("a", {1: [0.9] * 10}, {1: 0.2})
    beyond = Attempt("b", {1: [0.0] * 10}, {1: 0.26})
    assert removal_price(course(nothing, [holds], oracle([1])), real_power) == RemovalPrice(0.2, None)
    assert removal_price(course(nothing, [holds, beyond], oracle([1])), real_power) == RemovalPrice(0.2, None)
    assert removal_price(course(nothing, [], oracle([1])), real_power) == RemovalPrice(0.0, None)


def test_an_attained_price_beyond_the_limit_is_censored_too():
    """The thief of seed 1 expects 20 % and pays 40: the mean of what was paid, 30 %, is beyond the limit."""
    nothing = Attempt("origin", {1: [1.0] * 10, 2: [1.0] * 10}, {1: 0.0, 2: 0.0})
    attempt = Attempt("a", {1: [0.0] * 10, 2: [0.0] * 10}, {1: 0.4, 2: 0.2})
    assert removal_price(course(nothing, [attempt], blind([1, 2])), real_power).high is None


def test_what_could_not_be_claimed_at_origin_costs_nothing_to_remove():
    nothing = Attempt("origin", {1: [0.1] * 10}, {1: 0.0})
    assert removal_price(course(nothing, [], oracle([1])), real_power) == RemovalPrice(0.0, 0.0)


def test_an_attempt_that_leaves_more_than_nothing_is_not_made():
    nothing = Attempt("origin", {1: [0.5]}, {1: 0.0})
    assert within(course(nothing, [Attempt("a", {1: [0.6]}, {1: 0.0})], oracle([1])), 0.1).fsr == 0.5


def test_of_equal_attempts_the_cheapest_is_made():
    nothing = Attempt("origin", {1: [1.0]}, {1: 0.0})
    dear, cheap = Attempt("dear", {1: [0.2]}, {1: 0.09}), Attempt("cheap", {1: [0.2]}, {1: 0.01})
    assert names(within(course(nothing, [dear, cheap], oracle([1])), 0.1)) == ["cheap"]


def test_each_fingerprint_has_its_own_price():
    steps = course(NOTHING, [CHEAP, DEAR], blind([1, 2]))
    # On seed 2, "cheap" leaves 0.5 and 0.7: neither is below half of 1.
    assert fingerprint_prices(steps, NOTHING) == {1: [0.02, 0.02], 2: [0.06, 0.06]}


def test_a_fingerprint_that_is_never_halved_costs_the_limit_and_one_that_never_answered_nothing():
    nothing = Attempt("origin", {1: [1.0, 1.0, 0.0, 0.01, 0.02]}, {1: 0.0})
    attempt = Attempt("a", {1: [0.6, 0.4, 0.0, 0.01, 0.02]}, {1: 0.1})
    assert fingerprint_prices(course(nothing, [attempt], oracle([1])), nothing) == {1: [LIMIT, 0.1, 0.0, 0.0, LIMIT]}


def test_one_seed_has_no_blind_thief():
    with pytest.raises(ValueError, match="two seeds or more, found 1"):
        blind([42])


# What must hold in every case.


@pytest.fixture(params=range(20))
def case(request):
    """Attempts of one strength for all ten fingerprints, so that the power falls as F does."""
    draw = random.Random(request.param)
    seeds = [42, 43, 44]
    nothing = Attempt("origin", {seed: [1.0] * 10 for seed in seeds}, dict.fromkeys(seeds, 0.0))
    attempts = [
        Attempt(str(i), {s: [draw.random()] * 10 for s in seeds}, {s: 0.3 * draw.random() for s in seeds})
        for i in range(8)
    ]
    return draw, seeds, nothing, attempts


def dearness(found):
    return float("inf") if found.high is None else found.high


def test_when_f_falls_the_price_falls(case):
    draw, _, nothing, attempts = case
    before = removal_price(course(nothing, attempts, oracle([42])), real_power)
    weaker = [Attempt(a.condition, {42: [a.p[42][0] * draw.random()] * 10}, a.price) for a in attempts]
    assert dearness(removal_price(course(nothing, weaker, oracle([42])), real_power)) <= dearness(before)


def test_more_adversaries_never_help_the_owner_against_the_oracle(case):
    _, seeds, nothing, attempts = case
    few, all_of_them = (course(nothing, some, oracle(seeds)) for some in (attempts[:4], attempts))
    for budget in (0.0, 0.01, 0.1, 0.25):
        assert within(all_of_them, budget).fsr <= within(few, budget).fsr


def test_the_oracle_is_the_lower_edge_where_both_pay_the_same(case):
    _, seeds, nothing, attempts = case
    attempts = [Attempt(a.condition, a.p, dict.fromkeys(seeds, a.price[42])) for a in attempts]
    edges, steps = course(nothing, attempts, oracle(seeds)), course(nothing, attempts, blind(seeds))
    for budget in (0.0, 0.01, 0.1, 0.25):
        assert within(edges, budget).fsr <= within(steps, budget).fsr + 1e-12


def test_the_blind_thief_never_sees_the_fingerprints_that_are_scored(case):
    """Whatever the figures of a seed are, what is done to that seed stays the same."""
    draw, seeds, nothing, attempts = case
    changed = [
        Attempt(a.condition, dict(a.p) | {42: [draw.random()] * 10}, dict(a.price) | {42: draw.random()})
        for a in attempts
    ]
    before, after = (course(nothing, some, blind(seeds)) for some in (attempts, changed))
    for budget in (0.0, 0.01, 0.1, 0.25):
        first, second = within(before, budget).chosen[42], within(after, budget).chosen[42]
        assert first.condition == second.condition


def test_the_bracket_holds_the_price(case):
    _, seeds, nothing, attempts = case
    found = removal_price(course(nothing, attempts, blind(seeds)), real_power)
    assert 0 <= found.low <= LIMIT and (found.high is None or found.low < found.high <= LIMIT)


def test_it_needs_no_torch():
    code = "import sys, fpbench.metrics.removal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
