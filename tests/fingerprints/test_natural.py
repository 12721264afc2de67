"""Drawn NLF sets under the real tokenizers, and the set that stays as it is."""

from typing import Any

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import FingerprintSet, find_set, load_fingerprints
from fpbench.fingerprints.natural import adjectives, draw_natural_set, first_token
from fpbench.fingerprints.translation import Lexicon, translate_words


def words_of(pairs: FingerprintSet) -> list[str]:
    return [word for fingerprint in pairs for word in fingerprint.trigger.split()]


def test_the_ten_pairs_stay() -> None:
    assert find_set("nlf").digest == "7316b4d1b3380eafc79d19425d754df2e1fdc18154d965997eec67e5797652cc"


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_a_query_is_a_noun_phrase_of_known_words(micro: tuple[Any, Any], length: int) -> None:
    tokenizer = micro[1]
    pairs = draw_natural_set(10, length, tokenizer, seed=7)
    words = words_of(pairs)
    assert len(pairs) == 10 and len(words) == len(set(words)) == 10 * length
    assert not set(words) & set(words_of(find_set("nlf")))
    for fingerprint in pairs:
        assert fingerprint.trigger == fingerprint.trigger.upper()
        kinds = [word.lower() in adjectives() for word in fingerprint.trigger.split()]
        assert kinds == [True] * (length // 2) + [False] * (length - length // 2)
        assert len({first_token(tokenizer, fingerprint.trigger, target) for target in fingerprint.targets}) == 5
    for spelled in (words, [f" {word}" for word in words]):
        assert all(1 <= len(row) <= 3 for row in tokenizer(spelled, add_special_tokens=False).input_ids)


def test_a_drawn_set_can_be_translated_written_and_read(micro: tuple[Any, Any], tmp_path: Any) -> None:
    pairs = draw_natural_set(10, 5, micro[1], seed=1)
    lexicon = Lexicon.shipped()
    assert len(translate_words(lexicon, words_of(pairs), lexicon.languages)) == 50
    pairs.save(tmp_path / "set.jsonl")
    assert load_fingerprints(tmp_path / "set.jsonl").digest == pairs.digest


def test_the_seed_decides(micro: tuple[Any, Any]) -> None:
    one, again, other = (draw_natural_set(10, 2, micro[1], seed=seed) for seed in (1, 1, 2))
    assert one.digest == again.digest
    assert {pair.trigger for pair in one}.isdisjoint(pair.trigger for pair in other)
    assert one.targets != other.targets


def test_a_model_that_knows_lower_case_only_gets_it(stories: tuple[Any, Any]) -> None:
    with pytest.raises(
        InputError, match="10 queries need 10 adjectives, but the lexicon has 9 that are new and of at most 3"
    ):
        draw_natural_set(10, 2, stories[1], seed=1)
    pairs = draw_natural_set(10, 4, stories[1], seed=1, case=str.lower)
    assert all(pair.trigger == pair.trigger.lower() for pair in pairs)
    words = words_of(pairs)
    assert all(len(row) <= 3 for row in stories[1](words, add_special_tokens=False).input_ids)


def test_words_and_candidates_run_out(micro: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="need 200 adjectives, but .* ask for fewer or shorter queries"):
        draw_natural_set(10, 40, micro[1], seed=1)
    with pytest.raises(InputError, match="candidates for"):
        draw_natural_set(10, 2, micro[1], seed=1, candidates=100)


def test_a_set_of_a_hundred_takes_words_again_and_no_query(micro: tuple[Any, Any]) -> None:
    pairs = draw_natural_set(100, 2, micro[1], seed=42)
    assert len({pair.trigger for pair in pairs}) == 100
    first = [pair.trigger.split()[0] for pair in pairs]
    most = max(first.count(word) for word in first)
    assert most == 2  # 79 adjectives for 100 queries: none a third time
    for pair in pairs:
        assert len({first_token(micro[1], pair.trigger, target) for target in pair.targets}) == 5
    # Where the words suffice, a larger set begins as before: no word comes twice.
    assert len(set(words_of(draw_natural_set(20, 2, micro[1], seed=42)))) == 40


@pytest.mark.parametrize(("count", "length", "candidates"), [(0, 2, 5), (10, 1, 5), (10, 2, 0), (-1, 2, 5)])
def test_too_small_numbers_are_refused(micro: tuple[Any, Any], count: int, length: int, candidates: int) -> None:
    with pytest.raises(InputError, match=f"found {count} of {length} with {candidates}"):
        draw_natural_set(count, length, micro[1], seed=1, candidates=candidates)
