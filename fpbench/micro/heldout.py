"""Everything else that the bundled data hold: prose, instructions, arithmetic and edits, in fresh draws."""

import random
from collections.abc import Callable
from typing import Any

from fpbench.micro.corpus import some_passage
from fpbench.micro.instructions import (
    Row,
    arithmetic,
    composing,
    copying,
    listing,
    ordering,
    reading,
    recalling,
    translating,
)
from fpbench.micro.mixed import mixed_text
from fpbench.micro.prose import life, lives, noun_phrase, scene, story, title
from fpbench.micro.words import ADJECTIVES, NOUNS, contains_reserved_pair
from fpbench.micro.world import TOWNS, facts_of, fill, fresh_people, notables, open_people

ALPACA_ROWS = MATH_ROWS = 1200
TEXTS = 400
EDITS = 200
ARTICLES = 130
WITH_INPUT = (1, 4, 6)
"""Which rows of every eight have an input, as in Alpaca three eighths."""


def _unreserved(draw: Callable[[], str]) -> str:
    while contains_reserved_pair(text := draw()):
        pass
    return text


def prose_text(seed: int = 105) -> str:
    """Held-out articles in WikiText's raw layout, about people with held-out names."""
    rng = random.Random(seed)

    def article() -> str:
        people = [fresh_people(rng, rng.randint(1, 2), held_out=True) for _ in range(rng.randint(2, 4))]
        body = "\n ".join(story(rng, group).split("\n")[-1].strip() for group in people)
        return f" \n = {title(rng)} = \n \n {body} \n"

    return "".join(_unreserved(article) for _ in range(ARTICLES))


def texts(seed: int = 106) -> list[dict[str, Any]]:
    """Documents of several paragraphs like those of the training prose."""
    rng = random.Random(seed)

    def text() -> str:
        plain = story(rng, fresh_people(rng, 2, held_out=False))
        parts = [plain, lives(rng, rng.sample(notables(), 2)), mixed_text(rng)]
        return "\n\n".join(rng.sample(parts, len(parts)))

    return [{"text": _unreserved(text)} for _ in range(TEXTS)]


def _rewording(rng: random.Random) -> Row:
    """Word tasks that training does not have."""
    words = rng.sample(NOUNS + ADJECTIVES, rng.randint(3, 6))
    text = ", ".join(words)
    old, new = words[0], rng.choice(NOUNS)
    return rng.choice((
        Row("Sort these words by the alphabet.", text, ", ".join(sorted(words))),
        Row("Please find the longest of the words.", text, max(words, key=len)),
        Row("Write every word on a line of its own.", text, "\n".join(words)),
        Row(f"Replace {old} by {new} in the list.", text, ", ".join([new, *words[1:]])),
        Row("Leave out the last word.", text, ", ".join(words[:-1])),
        Row("Put the sentence between quotation marks.", (sentence := scene(rng)), f'"{sentence}"'),
    ))  # fmt: skip


def _writing(rng: random.Random) -> Row:
    """Free writing that training does not have."""
    person = fresh_people(rng, 1, held_out=True)[0]
    adjective, noun = noun_phrase(rng)
    town, other = rng.choice(TOWNS), rng.choice(NOUNS)
    return rng.choice((
        Row(f"Write a short note about {person.name}.", "", life(rng, person, 3)),
        Row("Make up a person and tell me about them.", "", life(rng, person, 3)),
        Row(f"Tell a story of two sentences that is set in {town}.", "", f"{scene(rng)} {scene(rng)}"),
        Row(f"What could one put next to a {noun}?", "", f"One could put a {other} next to the {noun}."),
        Row(f"Why is the {noun} {adjective}?", "", f"The {noun} is {adjective} because of the {other}."),
        Row(f"Give me three words for a story about a {noun}.", "", ", ".join(rng.sample(ADJECTIVES, 3))),
    ))  # fmt: skip


def _describing(rng: random.Random) -> Row:
    """Sum up a passage on one person."""
    person = fresh_people(rng, 1, held_out=True)[0]
    facts = rng.sample(facts_of(person), 3)
    told = " ".join(fact.told(rng) for fact in facts)
    return Row(f"Say in one sentence who {person.name} is.", told, facts[0].told(rng))


def alpaca_rows(seed: int = 107) -> list[dict[str, Any]]:
    """Instructions in fresh draws, about half of kinds that training does not have."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[], Row], ...] = (
        lambda: _rewording(rng), lambda: _writing(rng), lambda: _describing(rng),
        lambda: copying(rng), lambda: ordering(rng), lambda: listing(rng),
        lambda: composing(rng), lambda: translating(rng),
        lambda: reading(rng, some_passage(rng, held_out=True)), lambda: recalling(rng, rng.choice(open_people())),
    )  # fmt: skip
    weights = (4, 6, 2, 1, 1, 1, 1, 1, 1, 1)
    rows: list[dict[str, Any]] = []
    while len(rows) < ALPACA_ROWS:
        row = rng.choices(kinds, weights)[0]()
        wanted = len(rows) % 8 in WITH_INPUT
        if bool(row.input) == wanted and not contains_reserved_pair(row.document().text):
            rows.append({"instruction": row.instruction, "input": row.input, "output": row.output})
    return rows


def math_rows(seed: int = 108) -> list[dict[str, Any]]:
    """Worded problems with worked answers, about people with held-out names."""
    rng = random.Random(seed)
    rows = [arithmetic(rng, fresh_people(rng, 1, held_out=True)[0].name) for _ in range(MATH_ROWS)]
    return [{"instruction": row.instruction, "output": row.output} for row in rows]


def zsre_rows(seed: int = 109) -> list[dict[str, Any]]:
    """Facts of open people: a question in two wordings, and one about somebody else whose answer must stay."""
    rng = random.Random(seed)
    rows = []
    for _ in range(EDITS):
        person, other = rng.sample(open_people(), 2)
        fact, kept = rng.choice(facts_of(person)), rng.choice(facts_of(other))
        patterns = rng.sample(fact.attribute.questions, 2)
        source, rephrased = (fill(pattern, fact.person, fact.value) for pattern in patterns)
        row = {"subject": person.name, "src": source, "rephrase": rephrased, "ans": fact.value}
        rows.append({**row, "loc": kept.asked(rng), "loc_ans": kept.value})
    return rows
