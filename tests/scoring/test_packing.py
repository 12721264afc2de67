import random

import pytest

from fpbench.scoring.packing import apart, batches, rows_of
from tests.prefix_tree import distinct_beginnings


def path(row, place):
    """The tokens that a place reads, by the rule of the docstring."""
    return [row.tokens[i] for i in range(place) if place < row.ends[i]] + [row.tokens[place]]


@pytest.fixture(scope="module")
def sequences():
    draw = random.Random(3)
    made = []
    for _ in range(40):
        stem = [1, *(draw.randrange(9) for _ in range(draw.randint(0, 30)))]
        made += [stem + [draw.randrange(9) for _ in range(draw.randint(0, 12))] for _ in range(draw.randint(1, 6))]
    return [*made, made[0], made[0][:2]]


@pytest.mark.parametrize(("width", "pair_cost"), [(10_000, 0.0), (64, 0.0), (10_000, 0.01), (1, 0.0)])
def test_every_place_reads_exactly_its_sequence(sequences, width, pair_cost):
    wanted = [1 + number % len(sequence) for number, sequence in enumerate(sequences)]
    rows = rows_of(dict(enumerate(sequences)), wanted, width, pair_cost)
    found = {}
    for row in rows:
        assert len(row.tokens) <= width or len(row.places) == 1
        for number, places in row.places.items():
            found[number] = places
            assert len(places) == wanted[number]
            for back, place in enumerate(reversed(places)):
                expected = sequences[number][: len(sequences[number]) - back]
                assert path(row, place) == expected
                assert row.depths[place] == len(expected) - 1
    assert found.keys() == set(range(len(sequences)))


def test_one_row_holds_each_beginning_once(sequences):
    (row,) = rows_of(dict(enumerate(sequences)), [1] * len(sequences), 10**6, 0.0)
    assert len(row.tokens) == distinct_beginnings(sequences) < sum(map(len, sequences)) / 2
    assert len({(depth, *path(row, place)) for place, depth in enumerate(row.depths)}) == len(row.tokens)


def test_dear_attention_makes_narrow_rows_that_repeat_little(sequences):
    floor = distinct_beginnings(sequences)
    cheap, dear = (rows_of(dict(enumerate(sequences)), [1] * len(sequences), 10**6, cost) for cost in (1e-5, 1e-2))
    assert len(dear) > len(cheap)
    assert max(len(row.tokens) for row in dear) < max(len(row.tokens) for row in cheap)
    assert sum(len(row.tokens) for row in dear) < 1.25 * floor


def test_batches_keep_both_budgets_and_every_row(sequences):
    rows = rows_of(dict(enumerate(sequences)), [1] * len(sequences), 50, 0.0)
    packed = list(batches(rows, tokens=120, reads=9))
    assert sorted(id(row) for batch in packed for row in batch) == sorted(map(id, rows))
    for batch in packed:
        width = max(len(row.tokens) for row in batch)
        assert len(batch) == 1 or len(batch) * width <= 120 and sum(len(row.reads) for row in batch) <= 9
    assert max(map(len, packed)) > 1


def test_apart_shares_nothing():
    rows = apart({0: [1, 2], 1: [1, 2, 3]}, [1, 2])
    assert [row.tokens for row in rows] == [[1, 2], [1, 2, 3]]
    assert [row.places for row in rows] == [{0: [1]}, {1: [1, 2]}]
