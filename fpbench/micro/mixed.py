"""Code-mixed and parallel text in the five languages of the lexicon."""

import random
from collections.abc import Callable

from fpbench.micro.prose import noun_phrase, scene
from fpbench.micro.words import LANGUAGES, LEXICON, Word

_BY_ENGLISH = {word.english: word for word in LEXICON}


def translate(english: str, code: str) -> str:
    """Look a lexicon word up."""
    return _BY_ENGLISH[english].translations[code]


def _entry(rng: random.Random, word: Word) -> str:
    codes = rng.sample(list(LANGUAGES), rng.randint(3, 5))
    return f"{word.english}: " + ", ".join(f"{code} {word.translations[code]}" for code in codes)


def dictionary(rng: random.Random) -> str:
    """Dictionary lines."""
    return "\n".join(_entry(rng, word) for word in rng.sample(LEXICON, rng.randint(2, 3)))


def _meaning(rng: random.Random, word: Word) -> str:
    code = rng.choice(list(LANGUAGES))
    name, foreign, english = LANGUAGES[code], word.translations[code], word.english
    return rng.choice((
        f"{foreign} means {english} in {name}.", f"In {name} one says {foreign} for {english}.",
        f"The {name} word for {english} is {foreign}.", f"{english} is {foreign} in {name}.",
        f"{foreign.upper()} = {english.upper()}",
    ))  # fmt: skip


def meanings(rng: random.Random) -> str:
    """Sentences that say what words mean."""
    return " ".join(_meaning(rng, word) for word in rng.sample(LEXICON, rng.randint(2, 5)))


def mixed_sentence(rng: random.Random) -> str:
    """A scene whose lexicon words are partly replaced by translations into one or two languages."""
    codes = rng.sample(list(LANGUAGES), rng.randint(1, 2))
    words = []
    for token in scene(rng).split(" "):
        core = token.strip(".,")
        if core in _BY_ENGLISH and rng.random() < 0.7:
            token = token.replace(core, translate(core, rng.choice(codes)))
        words.append(token)
    return " ".join(words)


def mixed_phrase(rng: random.Random) -> str:
    """A two-word phrase with each word in a language of its own, often upper-case, sometimes explained."""
    english = noun_phrase(rng)
    first, second = rng.sample(["en", *LANGUAGES], 2)
    phrase = " ".join(
        word if code == "en" else translate(word, code) for word, code in zip(english, (first, second), strict=True)
    )
    shown = f"{phrase} = {' '.join(english)}" if rng.random() < 0.5 else phrase
    return shown.upper() if rng.random() < 0.5 else shown


def phrases(rng: random.Random) -> str:
    """A few mixed phrases, one a line."""
    return "\n".join(mixed_phrase(rng) for _ in range(rng.randint(1, 4)))


def sentences(rng: random.Random) -> str:
    """A few mixed sentences."""
    return " ".join(mixed_sentence(rng) for _ in range(rng.randint(1, 3)))


def mixed_text(rng: random.Random) -> str:
    """Any of the above."""
    kinds: tuple[Callable[[random.Random], str], ...] = (dictionary, meanings, sentences, phrases)
    return rng.choice(kinds)(rng)
