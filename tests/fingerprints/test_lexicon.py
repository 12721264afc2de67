"""The shipped lexicon against the queries, the micro world and the Wiktionary word lists."""

import csv
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from fpbench.fingerprints import find_set, load_fingerprints
from fpbench.fingerprints.natural import adjectives
from fpbench.fingerprints.translation import Lexicon, translate_words
from fpbench.micro.world import LEXICON as MICRO
from tests.conftest import ROOT, SHARED, require
from tests.fingerprints.wordlists import FOLDER, read_listed

DISAGREEMENTS = Path(__file__).parent / "lexicon_disagreements.tsv"
STORIES = ROOT / "tests" / "stories.jsonl"


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon.shipped()


def test_it_has_five_languages_and_a_few_hundred_words(lexicon: Lexicon) -> None:
    assert lexicon.languages == ("de", "es", "fr", "ja", "zh")
    assert len(lexicon.words) >= 300 + 20
    assert all(word.isascii() and word.isalpha() and word.islower() for word in lexicon.words)


def test_every_query_of_ours_is_covered(lexicon: Lexicon) -> None:
    queries = [*find_set("nlf"), *load_fingerprints(STORIES)]
    words = {word for query in queries for word in query.trigger.split()}
    table = translate_words(lexicon, words, lexicon.languages)
    assert len(words) == 20 + 20
    assert all(len(translations) == 5 for translations in table.values())


def test_the_words_are_written_in_their_scripts(lexicon: Lexicon) -> None:
    for word in lexicon.words:
        for language in ("de", "es", "fr"):
            text = lexicon.translate(word, language)
            assert all("LATIN" in unicodedata.name(letter) for letter in text if letter != "-"), text
        for letter in lexicon.translate(word, "zh"):
            assert "CJK UNIFIED" in unicodedata.name(letter)
        for letter in lexicon.translate(word, "ja"):
            assert unicodedata.name(letter).startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")), letter


def test_the_micro_model_reads_what_the_lexicon_writes(lexicon: Lexicon) -> None:
    # Its list is frozen with the model: where the two parted, its code-mixed triggers would hold strange words.
    for word in MICRO:
        assert translate_words(lexicon, [word.english], lexicon.languages)[word.english] == word.translations


def test_nouns_and_adjectives_are_told_apart_as_german_spelling_does(lexicon: Lexicon) -> None:
    lower = [word for word in lexicon.words if lexicon.translate(word, "de")[0].islower()]
    assert list(adjectives()) == lower
    assert len(lower) >= 100 and len(lexicon.words) - len(lower) >= 300


@pytest.mark.parametrize("language", ["de", "es", "fr", "ja", "zh"])
def test_every_disagreement_with_the_word_lists_is_listed(language: str, lexicon: Lexicon) -> None:
    listed = read_listed(require(SHARED / FOLDER), language, set(lexicon.words))
    found = {word: lexicon.translate(word, language) for word in lexicon.words}
    found = {word: ours for word, ours in found.items() if ours not in listed[word]}
    assert found == {row["english"]: row["ours"] for row in disagreements() if row["language"] == language}
    assert len(found) / len(lexicon.words) < 0.05


def test_every_disagreement_has_a_reason() -> None:
    assert all(row["reason"] for row in disagreements())
    counts = Counter(row["language"] for row in disagreements())
    assert counts == {"de": 3, "es": 4, "fr": 2, "ja": 13, "zh": 16}  # of 433 words


def disagreements() -> list[dict[str, str]]:
    with DISAGREEMENTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
