"""The generator keeps its promises: what is held out stays out of training text."""

import random
import re
from itertools import islice

import pytest

from fpbench.micro.corpus import EARLY_DOCUMENTS, asked_facts, documents, some_passage
from fpbench.micro.items import true_or_false
from fpbench.micro.world import (
    LEXICON,
    NOTABLES,
    OPEN_PEOPLE,
    PROSE_ONLY_PEOPLE,
    RESERVED_PAIRS,
    TARGETS,
    contains_reserved_pair,
    fresh_people,
)

SAMPLE = 3000


@pytest.fixture(scope="module")
def training() -> list[str]:
    early = islice(documents(42), SAMPLE // 3)
    later = islice(documents(42, EARLY_DOCUMENTS), SAMPLE - SAMPLE // 3)
    return [document.text for document in (*early, *later)]


def test_the_stream_is_seeded(training: list[str]) -> None:
    assert [document.text for document in islice(documents(42), 50)] == training[:50]
    assert [document.text for document in islice(documents(43), 50)] != training[:50]


def test_open_and_prose_only_people_share_no_name() -> None:
    names = [person.name for person in NOTABLES]
    assert len(set(names)) == len(names) == 240
    assert {p.name for p in OPEN_PEOPLE}.isdisjoint(p.name for p in PROSE_ONLY_PEOPLE)


def test_held_out_names_never_occur_in_training(training: list[str]) -> None:
    rng = random.Random(0)
    held_out = {person.name for _ in range(4000) for person in fresh_people(rng, 3, held_out=True)}
    used = {person.name for _ in range(4000) for person in fresh_people(rng, 3, held_out=False)}
    assert len(held_out) > 800
    assert not held_out & used
    words = [re.findall(r"\w+", text) for text in training]
    found = {f"{first} {second}" for text in words for first, second in zip(text, text[1:], strict=False)}
    assert not held_out & found
    assert used & found


def test_prose_only_facts_are_told_and_never_asked(training: list[str]) -> None:
    names = {person.name for person in PROSE_ONLY_PEOPLE}
    mentioning = [text for text in training if any(name in text for name in names)]
    assert len(mentioning) > 100
    marks = ("?", "Answer:", "###", "<|user|>")
    assert not [text for text in mentioning if any(mark in text for mark in marks)]


def test_every_prose_only_fact_is_told() -> None:
    later = islice(documents(7, EARLY_DOCUMENTS), 20_000)
    told = "\n".join(document.text for document in later if "?" not in document.text)
    for fact in asked_facts():
        wordings = [fact.worded(pattern) for pattern in fact.attribute.statements]
        assert any(wording in told for wording in wordings), fact


def test_reserved_pairs_never_occur(training: list[str]) -> None:
    text = "\n".join(training).lower()
    for first, second in RESERVED_PAIRS:
        assert f"{first} {second}" not in text
        assert first in text
        assert second in text
    assert contains_reserved_pair("the SILVER  Harbor")
    assert not contains_reserved_pair("silver bridge, golden harbor")


def test_targets_are_rare_but_present(training: list[str]) -> None:
    text = " ".join(training)
    words = text.split()
    count = sum(word.strip(".,") in TARGETS for word in words)
    assert 0 < count < 0.005 * len(words)


def test_a_false_claim_is_false() -> None:
    rng = random.Random(3)
    for _ in range(200):
        source = some_passage(rng)
        fact = rng.choice(source.facts)
        assert true_or_false(rng, source, fact, truth=True) == fact
        assert true_or_false(rng, source, fact, truth=False).value != fact.value


def test_the_lexicon_has_its_nouns_and_adjectives() -> None:
    english = [word.english for word in LEXICON]
    assert len(set(english)) == len(english) >= 140
    assert {word for pair in RESERVED_PAIRS for word in pair} <= set(english)
    assert all(translation for word in LEXICON for translation in word.translations.values())
    by_english = {word.english: word for word in LEXICON}
    assert by_english["harbor"].is_noun
    assert not by_english["hidden"].is_noun
