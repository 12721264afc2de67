"""Candidate targets whose first tokens differ."""

from typing import Any

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.fingerprints.natural import first_token, with_candidates, words


def test_words_are_distinct_and_new() -> None:
    assert len(set(words())) == len(words()) >= 150
    assert not set(words()) & set(find_set("nlf").targets)
    assert all(word.isalpha() and word[0].isupper() and word[1:].islower() for word in words())


@pytest.mark.parametrize("count", [1, 3, 5, 10])
def test_every_fingerprint_gets_its_candidates(micro: tuple[Any, Any], count: int) -> None:
    pairs = with_candidates(find_set("nlf"), count, micro[1])
    assert pairs.name == f"nlf-{count}"
    for before, after in zip(find_set("nlf"), pairs, strict=True):
        assert after.trigger == before.trigger and len(after.targets) == count
        assert after.targets[: min(count, 5)] == before.targets[:count]
        assert len({first_token(micro[1], after.trigger, target) for target in after.targets}) == count
    fresh = [target for each in pairs for target in each.targets[5:]]
    assert len(set(fresh)) == len(fresh)


def test_the_seed_decides(micro: tuple[Any, Any]) -> None:
    one, again, other = (with_candidates(find_set("nlf"), 10, micro[1], seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest


def test_too_many_are_refused(micro: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="100 candidates for .*: only .* were left; ask for fewer"):
        with_candidates(find_set("nlf"), 100, micro[1])
