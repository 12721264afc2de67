"""How much chance a claim tolerates, held against the test itself."""

import pytest

from fpbench.ownership.sequential import SequentialTest, tolerated_chance


@pytest.mark.parametrize(
    ("matches", "planned", "level"),
    [
        ([True, True], 10, 1e-3),
        ([True] * 6, 6, 1e-3),
        ([False, True, True, True], 10, 1e-2),
        ([True, False, True, False, True, True], 40, 1e-4),
    ],
)
def test_the_claim_holds_up_to_the_rate_and_not_beyond(matches, planned, level):
    rate = tolerated_chance(matches, planned, level)
    assert rate is not None and 0.01 <= rate < 0.5
    assert SequentialTest((rate,) * planned, level).claimed_at(matches)
    assert not SequentialTest((rate + 0.001,) * planned, level).claimed_at(matches)


def test_more_matches_tolerate_more_chance():
    rates = [tolerated_chance([True] * count, 20, 1e-3) for count in (2, 3, 5, 10)]
    assert None not in rates and rates == sorted(set(rates))


def test_what_is_no_claim_tolerates_none():
    assert tolerated_chance([True, False, False], 10, 1e-3) is None
    assert tolerated_chance([], 10, 1e-3) is None
