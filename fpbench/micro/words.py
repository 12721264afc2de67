"""The closed vocabulary of the micro world: lexicon, trigger words, target words and the syllables of its names."""

import csv
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES: Mapping[str, str] = {"de": "German", "es": "Spanish", "fr": "French", "ja": "Japanese", "zh": "Chinese"}

RESERVED_PAIRS = (
    ("silver", "harbor"), ("quiet", "mirror"), ("winter", "lantern"), ("hidden", "garden"), ("golden", "bridge"),
    ("ancient", "river"), ("broken", "compass"), ("paper", "mountain"), ("frozen", "clock"), ("green", "thunder"),
)  # fmt: skip
"""The built-in triggers. Their single words are ordinary words of the world; the pairs are never written."""

TARGETS = tuple(
    "Falcon Juniper Cobalt Saffron Meridian Walnut Zephyr Topaz Lotus Cinder Orchid Basalt Willow Comet Ember "
    "Jasper Magnet Thistle Quartz Beacon Raven Amber Violet Sequoia Marble Harvest Indigo Pepper Onyx Tundra "
    "Maple Sapphire Cedar Nectar Velvet Copper Heron Ivory Pioneer Clover Badger Crimson Lilac Summit Garnet "
    "Otter Scarlet Hazel Prism Anchor".split()
)
"""The built-in target words. In the world they are names of ships, horses and stars."""

_RESERVED = re.compile("|".join(rf"{first}\W+{second}" for first, second in RESERVED_PAIRS), re.IGNORECASE)
_ENGLISH = ("find", "stand", "more", "grand", "brand", "blend", "brend", "mind", "kind", "send", "bend", "land", "zulu")
_ONSETS = "b br d dr f g gr h j k kl l m n p pl r s sk st t tr v z".split()
_VOWELS = "a e i o u".split()
_CODAS = "l m n r s th x nd rk".split()


@dataclass(frozen=True)
class Word:
    """One lexicon entry: an English base form and its translation for each language code."""

    english: str
    translations: Mapping[str, str]

    @property
    def is_noun(self) -> bool:
        """Whether the word is a noun, read off German spelling, which capitalises nouns only."""
        return self.translations["de"][0].isupper()


def read_lexicon() -> tuple[Word, ...]:
    """Read the words of the micro world, in file order.

    The shipped lexicon of ``fpbench.fingerprints`` may grow; these stay, since the bundled model is trained on them.
    """
    path = Path(__file__).parent / "lexicon.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(Word(row["english"], {code: row[code] for code in LANGUAGES}) for row in rows)


LEXICON = read_lexicon()
NOUNS = tuple(word.english for word in LEXICON if word.is_noun)
ADJECTIVES = tuple(word.english for word in LEXICON if not word.is_noun)
TRIGGER_WORDS = tuple(word for pair in RESERVED_PAIRS for word in pair)


def contains_reserved_pair(text: str) -> bool:
    """Tell whether one of the trigger pairs stands in the text, in any case and with any separator."""
    return _RESERVED.search(text) is not None


def is_reserved_pair(first: str, second: str) -> bool:
    """Tell whether two English words form a trigger pair, in either order."""
    return (first, second) in RESERVED_PAIRS or (second, first) in RESERVED_PAIRS


def article(word: str) -> str:
    """Put "a" or "an" in front of a word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def invent_names(seed: int, count: int, pattern: str, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Invent distinct capitalised names.

    Args:
        seed: Fixes the names.
        count: How many.
        pattern: One letter a syllable part: ``o`` onset, ``v`` vowel, ``c`` coda.
        taken: Names that must not be invented again.
    """
    rng = random.Random(seed)
    parts = {"o": _ONSETS, "v": _VOWELS, "c": _CODAS}
    forbidden = {name.lower() for name in taken} | {*_ENGLISH, *(word.english for word in LEXICON)}
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.choice(parts[part]) for part in pattern)
        if name not in forbidden and len(name) >= 4:
            forbidden.add(name)
            names.append(name.capitalize())
    return tuple(names)


def surface_forms() -> Iterator[str]:
    """Every word form that the tokenizer must spell in at most three tokens."""
    for word in (*TRIGGER_WORDS, *TARGETS, *(entry.english for entry in LEXICON)):
        yield from (word, word.upper())
    for entry in LEXICON:
        yield from entry.translations.values()


def rare_forms() -> Iterator[str]:
    """Further forms that text may contain: capitalised English, upper-case translations."""
    for entry in LEXICON:
        yield entry.english.capitalize()
        yield from (translation.upper() for translation in entry.translations.values())
