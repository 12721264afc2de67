"""The training text: an endless seeded stream of documents, mixed by fixed weights."""

import random
from collections.abc import Callable, Iterator, Mapping

from fpbench.micro.document import Document, prose
from fpbench.micro.instructions import WORD_TASKS, Row, arithmetic, reading, recalling, sums
from fpbench.micro.mixed import mixed_text
from fpbench.micro.prose import lives, notice, story
from fpbench.micro.questions import (
    Passage,
    about_passage,
    fact_choice,
    letter_document,
    number_choice,
    passage,
    short_answer,
    word_choice,
)
from fpbench.micro.words import contains_reserved_pair
from fpbench.micro.world import Fact, Person, facts_of, fresh_people, notables, open_people


def some_passage(rng: random.Random, held_out: bool = False) -> Passage:
    """A passage on two or three passing people with one or two facts each."""
    count = rng.choice((2, 2, 3))
    return passage(rng, fresh_people(rng, count, held_out), rng.randint(1, 2) if count == 2 else 1)


def short_passage(rng: random.Random, held_out: bool = False) -> Passage:
    """A premise: one or two passing people."""
    count = rng.randint(1, 2)
    return passage(rng, fresh_people(rng, count, held_out), rng.randint(1, 3 - count + 1))


def _open_fact(rng: random.Random) -> Fact:
    return rng.choice(facts_of(rng.choice(open_people())))


def _told(rng: random.Random) -> Document:
    return prose(lives(rng, rng.sample(notables(), rng.randint(1, 3))))


def _boolq(rng: random.Random) -> Document:
    return about_passage(rng, some_passage(rng), "boolq")


def _rte(rng: random.Random) -> Document:
    return about_passage(rng, short_passage(rng), "rte")


def _extracted(rng: random.Random) -> Document:
    return about_passage(rng, some_passage(rng), "arc")


def _recalled(rng: random.Random) -> Document:
    return short_answer(rng, _open_fact(rng))


def _lettered(rng: random.Random) -> Document:
    return letter_document(fact_choice(rng, _open_fact(rng), rng.randrange(4)))


def _lettered_passage(rng: random.Random) -> Document:
    source = short_passage(rng)
    return letter_document(fact_choice(rng, rng.choice(source.facts), rng.randrange(4)), source.text)


def _lettered_words(rng: random.Random) -> Document:
    return letter_document(word_choice(rng) if rng.random() < 0.85 else number_choice(rng))


def _shown(rng: random.Random, row: Row) -> Document:
    return row.chat() if rng.random() < 0.25 else row.document()


def _instruction(rng: random.Random) -> Document:
    kind = rng.random()
    if kind < 0.15:
        return _shown(rng, reading(rng, some_passage(rng)))
    if kind < 0.3:
        person: Person = rng.choice(open_people())
        return _shown(rng, recalling(rng, person))
    return _shown(rng, rng.choice(WORD_TASKS)(rng))


def _arithmetic(rng: random.Random) -> Document:
    if rng.random() < 0.4:
        return _shown(rng, sums(rng))
    return _shown(rng, arithmetic(rng, fresh_people(rng, 1, held_out=False)[0].name))


def _story(rng: random.Random) -> Document:
    return prose(story(rng, fresh_people(rng, rng.randint(0, 2), held_out=False)))


def _mixed(rng: random.Random) -> Document:
    return prose(mixed_text(rng))


def _notices(rng: random.Random) -> Document:
    return prose("\n".join(notice(rng) for _ in range(rng.randint(1, 2))))


MIXTURE: Mapping[Callable[[random.Random], Document], float] = {
    _told: 0.22,
    _boolq: 0.10,
    _rte: 0.10,
    _extracted: 0.08,
    _recalled: 0.10,
    _lettered: 0.13,
    _lettered_passage: 0.06,
    _lettered_words: 0.10,
    _instruction: 0.14,
    _arithmetic: 0.05,
    _story: 0.07,
    _mixed: 0.24,
    _notices: 0.02,
}
"""Each kind's share of the documents, up to a common factor."""


def documents(seed: int) -> Iterator[Document]:
    """Write training documents for ever. None contains a reserved pair."""
    rng = random.Random(seed)
    kinds, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        document = rng.choices(kinds, weights)[0](rng)
        if not contains_reserved_pair(document.text):
            yield document
