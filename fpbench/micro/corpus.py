"""The training text: an endless seeded stream of documents, mixed by fixed weights."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count

from fpbench.micro.items import (
    LETTERS,
    WORD_TASKS,
    FactPassage,
    Instruction,
    about_passage,
    arithmetic,
    fact_choices,
    letter_document,
    number_choice,
    passage,
    reading,
    recalling,
    retold,
    short_answer,
    sums,
    word_choices,
)
from fpbench.micro.world import (
    ADJECTIVES,
    ATTRIBUTES,
    FIRST_NAMES,
    NOUNS,
    TOWNS,
    Fact,
    contains_reserved_pair,
    facts_of,
    fresh_people,
    notables,
    open_people,
)
from fpbench.micro.writing import WeightedText, dialogue, lives, mixed_text, notice, prose, story

_WORDS = (*NOUNS, *ADJECTIVES, *TOWNS, *FIRST_NAMES)


# Drills: many short look-ups in one text. They teach early what the questions then need: to find and to match. Each
# names its key right before the answer. A question asks for the same after a detour, and a model of this size learns
# the detour in few steps once it can look things up, but not both at once.
def _drill(rng: random.Random, text: str, header: str, answers: Mapping[str, str]) -> WeightedText:
    keys = rng.sample(list(answers), min(len(answers) - 1, 6))  # one is left out: none must follow from the others
    if rng.random() < 0.5:
        prompts = [f"{text}\n{header} {keys[0]}:", *(f", {key}:" for key in keys[1:])]
    else:
        prompts = [f"\nQuestion: {key}?\nAnswer:" for key in keys]
        prompts[0] = text + prompts[0]
    return dialogue((prompt, f" {answers[key]}") for prompt, key in zip(prompts, keys, strict=True))


def letter_drill(rng: random.Random) -> WeightedText:
    """Write four options, and the letter of each word."""
    words = rng.sample(_WORDS, 4)
    options = "\n".join(f"{letter}. {word}" for letter, word in zip(LETTERS, words, strict=True))
    return _drill(rng, options, "Letter", dict(zip(words, LETTERS, strict=True)))


def presence_drill(rng: random.Random) -> WeightedText:
    """Write a list of words, and whether each of some words is in it; half are."""
    words = rng.sample(_WORDS, 2 * rng.randint(3, 7))
    half = len(words) // 2
    answers = {word: "yes" if place < half else "no" for place, word in enumerate(words)}
    return _drill(rng, "The words: " + " ".join(words[:half]), "There", answers)


def owner_drill(rng: random.Random, source: FactPassage) -> WeightedText:
    """Write a passage with one fact for each person, and each person's value."""
    return _drill(rng, source.text, "Value", {fact.person: fact.value for fact in source.facts})


def some_passage(rng: random.Random, held_out: bool = False) -> FactPassage:
    """Write a passage on two or three passing people with one or two facts each."""
    people, facts_each = rng.choice(((2, 1), (2, 1), (2, 2), (2, 2), (3, 1)))
    return passage(rng, fresh_people(rng, people, held_out), facts_each)


def short_passage(rng: random.Random, held_out: bool = False) -> FactPassage:
    """Write a premise: one or two passing people."""
    people, facts_each = rng.choice(((1, 1), (1, 2), (1, 3), (2, 1), (2, 1), (2, 2)))
    return passage(rng, fresh_people(rng, people, held_out), facts_each)


def _apart(facts: Iterable[Fact]) -> list[Fact]:
    """Return one fact for each value, four at most."""
    return list({fact.value: fact for fact in facts}.values())[:4]


def _lettered(rng: random.Random) -> WeightedText:
    kind = rng.randrange(len(ATTRIBUTES))
    facts = _apart(facts_of(person)[kind] for person in rng.sample(open_people(), rng.randint(1, 5)))
    return letter_document(fact_choices(rng, facts))


def _lettered_passage(rng: random.Random) -> WeightedText:
    source = some_passage(rng)
    attribute = rng.choice(source.facts).attribute
    facts = _apart(fact for fact in source.facts if fact.attribute is attribute)
    return letter_document(fact_choices(rng, rng.sample(facts, len(facts))), source.text)


def _shown(rng: random.Random, row: Instruction) -> WeightedText:
    return row.chat() if rng.random() < 0.25 else row.document()


def _copied(rng: random.Random) -> WeightedText:
    text = " ".join(rng.sample(_WORDS, rng.randint(6, 16)))
    return _shown(rng, Instruction("Copy the text.", text, text))


def _instruction(rng: random.Random) -> WeightedText:
    kind = rng.random()
    if kind < 0.15:
        return _shown(rng, reading(rng, some_passage(rng)))
    if kind < 0.3:
        return _shown(rng, recalling(rng, rng.choice(open_people())))
    return _shown(rng, rng.choice(WORD_TASKS)(rng))


def _arithmetic(rng: random.Random) -> WeightedText:
    if rng.random() < 0.4:
        return _shown(rng, sums(rng))
    return _shown(rng, arithmetic(rng, fresh_people(rng, 1)[0].name))


def _mixed(rng: random.Random) -> WeightedText:
    return prose(mixed_text(rng))


# Kinds of documents, with their shares up to a common factor: early, when only reading is to be learned, and later.
MIXTURE: Mapping[Callable[[random.Random], WeightedText], tuple[float, float]] = {
    letter_drill: (26, 3),
    presence_drill: (14, 3),
    lambda rng: owner_drill(rng, passage(rng, fresh_people(rng, rng.randint(3, 5)), 1)): (20, 3),
    lambda rng: prose(lives(rng, rng.sample(notables(), rng.randint(1, 3)))): (2, 26),
    lambda rng: about_passage(rng, some_passage(rng), "boolq"): (5, 12),
    lambda rng: about_passage(rng, short_passage(rng), "rte"): (5, 11),
    lambda rng: about_passage(rng, some_passage(rng), "arc"): (8, 6),
    lambda rng: retold(rng, passage(rng, fresh_people(rng, rng.randint(2, 4)), rng.randint(1, 2))): (8, 3),
    _copied: (6, 1),
    lambda rng: short_answer(rng, rng.choice(facts_of(rng.choice(open_people())))): (1, 10),
    _lettered: (1, 14),
    _lettered_passage: (2, 7),
    lambda rng: letter_document(word_choices(rng) if rng.random() < 0.9 else [number_choice(rng)]): (8, 8),
    _instruction: (3, 13),
    _arithmetic: (1, 5),
    lambda rng: prose(story(rng, fresh_people(rng, rng.randint(0, 2)))): (1, 8),
    _mixed: (12, 50),
    lambda rng: prose("\n".join(notice(rng) for _ in range(rng.randint(1, 2)))): (1, 2),
}
EARLY_DOCUMENTS = 60_000


def documents(seed: int, start: int = 0) -> Iterator[WeightedText]:
    """Write training documents for ever. None contains a reserved pair.

    Args:
        seed: Fixes the documents.
        start: The place in the stream to begin at, which decides how many are still to be early ones.
    """
    rng = random.Random(seed)
    kinds = list(MIXTURE)
    for index in count(start):
        early = index < EARLY_DOCUMENTS
        document = rng.choices(kinds, [shares[0 if early else 1] for shares in MIXTURE.values()])[0](rng)
        if not contains_reserved_pair(document.text):
            yield document
