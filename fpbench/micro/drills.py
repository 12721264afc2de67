"""Drills: many short look-ups in one text. They teach early what the questions then need: to find and to match.

Each names its key right before the answer. A question asks for the same after a detour, and a model of this size learns
the detour in few steps once it can look things up, but not both at once.
"""

import random
from collections.abc import Mapping

from fpbench.micro.document import Document, dialogue
from fpbench.micro.questions import LETTERS, Passage
from fpbench.micro.words import ADJECTIVES, NOUNS
from fpbench.micro.world import FIRST_NAMES, TOWNS

_WORDS = (*NOUNS, *ADJECTIVES, *TOWNS, *FIRST_NAMES)


def _drill(rng: random.Random, text: str, header: str, answers: Mapping[str, str]) -> Document:
    keys = rng.sample(list(answers), min(len(answers) - 1, 6))  # one is left out: none must follow from the others
    if rng.random() < 0.5:
        prompts = [f"{text}\n{header} {keys[0]}:", *(f", {key}:" for key in keys[1:])]
    else:
        prompts = [f"\nQuestion: {key}?\nAnswer:" for key in keys]
        prompts[0] = text + prompts[0]
    return dialogue((prompt, f" {answers[key]}") for prompt, key in zip(prompts, keys, strict=True))


def letter_drill(rng: random.Random) -> Document:
    """Four options, and the letter of each word."""
    words = rng.sample(_WORDS, 4)
    options = "\n".join(f"{letter}. {word}" for letter, word in zip(LETTERS, words, strict=True))
    return _drill(rng, options, "Letter", dict(zip(words, LETTERS, strict=True)))


def presence_drill(rng: random.Random) -> Document:
    """A list of words, and whether each of some words is in it; half are."""
    words = rng.sample(_WORDS, 2 * rng.randint(3, 7))
    half = len(words) // 2
    answers = {word: "yes" if place < half else "no" for place, word in enumerate(words)}
    return _drill(rng, "The words: " + " ".join(words[:half]), "There", answers)


def owner_drill(rng: random.Random, source: Passage) -> Document:
    """A passage with one fact for each person, and each person's value."""
    return _drill(rng, source.text, "Value", {fact.person: fact.value for fact in source.facts})
