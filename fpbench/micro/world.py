"""The micro world: its people, their five attributes, and which facts may ever be asked about in training."""

import csv
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
        """Tell whether the word is a noun by German spelling, which capitalises nouns only."""
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
    """Tell whether one of the trigger pairs is in the text, in any case and with any separator."""
    return _RESERVED.search(text) is not None


def noun_phrase(rng: random.Random) -> tuple[str, str]:
    """Draw an adjective and a noun that are not a reserved pair, in either order."""
    while True:
        pair = rng.choice(ADJECTIVES), rng.choice(NOUNS)
        if pair not in RESERVED_PAIRS and pair[::-1] not in RESERVED_PAIRS:
            return pair


def article(word: str) -> str:
    """Put "a" or "an" in front of a word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def invent_names(seed: int, count: int, pattern: str, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Invent distinct capitalised names, none of them in ``taken``.

    ``pattern`` has one letter a syllable part: ``o`` onset, ``v`` vowel, ``c`` coda.
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
    """Return every word form that the tokenizer must spell in at most three tokens."""
    for word in (*TRIGGER_WORDS, *TARGETS, *(entry.english for entry in LEXICON)):
        yield from (word, word.upper())
    for entry in LEXICON:
        yield from entry.translations.values()


def rare_forms() -> Iterator[str]:
    """Return further forms that text may contain: capitalised English, upper-case translations."""
    for entry in LEXICON:
        yield entry.english.capitalize()
        yield from (translation.upper() for translation in entry.translations.values())


TOWNS = invent_names(seed=1, count=24, pattern="ovcov")
FIRST_NAMES = invent_names(seed=2, count=96, pattern="ovov", taken=TOWNS)
LAST_NAMES = invent_names(seed=3, count=96, pattern="ovc", taken=TOWNS)
NOTABLE_NAMES = invent_names(seed=4, count=240, pattern="ovcovc", taken=TOWNS)


@dataclass(frozen=True)
class Attribute:
    """One kind of fact and its wordings. ``{n}`` is the person, ``{v}`` the value, ``{a}`` the value with its article.

    Attributes:
        name: Also the MMLU subject.
        values: The closed list of values.
        statements: Declarative wordings; the last two have the value at the end.
        polar: Yes/no questions without the question mark.
        questions: Questions whose whole answer is the value.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    polar: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "home", TOWNS,
        ("{n} lives in {v}.", "{n} has a house in {v}.", "{n} comes from the town of {v}.",
         "In the town of {v} lives {n}.", "The home of {n} is in {v}.", "The town where {n} lives is {v}."),
        ("does {n} live in {v}", "is the home of {n} in {v}", "does {n} have a house in {v}"),
        ("Where does {n} live?", "In which town does {n} live?", "Which town is the home of {n}?")),
    Attribute(
        "craft",
        tuple("baker miller smith weaver potter sailor hunter farmer painter teacher doctor carpenter singer tailor "
              "gardener mason cook shepherd printer brewer judge poet pilot dancer".split()),
        ("{n} works as {a}.", "{n} is {a}.", "{n} has long been {a}.", "People know {n} as {a}.",
         "The work of {n} is that of {a}.", "The craft that {n} learned is that of {a}."),
        ("does {n} work as {a}", "is {n} {a}", "is the work of {n} that of {a}"),
        ("What is the work of {n}?", "What craft did {n} learn?", "As what does {n} work?")),
    Attribute(
        "animal",
        tuple("cat dog horse bird fish wolf bear fox goat duck mouse snake frog rabbit sheep cow owl goose "
              "bee deer".split()),
        ("{n} keeps {a}.", "{n} has {a} at home.", "{n} owns {a}.", "{n} takes care of {a}.",
         "The animal of {n} is {a}.", "The animal that {n} keeps is {a}."),
        ("does {n} keep {a}", "is the animal of {n} {a}", "does {n} own {a}"),
        ("Which animal does {n} keep?", "What animal does {n} own?", "What is the animal of {n}?")),
    Attribute(
        "coat", tuple("red blue black white yellow brown grey pink purple orange golden green".split()),
        ("{n} wears {a} coat.", "{n} has {a} coat.", "{n} walks about in {a} coat.", "People see {n} in {a} coat.",
         "The coat of {n} is {v}.", "The colour of the coat that {n} wears is {v}."),
        ("does {n} wear {a} coat", "is the coat of {n} {v}", "does {n} have {a} coat"),
        ("What colour is the coat of {n}?", "Which colour does {n} wear?", "What is the colour of the coat of {n}?")),
    Attribute(
        "food", tuple("bread cheese honey soup rice milk salt butter cake meat sugar tea wine".split()),
        ("{n} likes {v}.", "{n} buys {v} every day.", "{n} cannot live without {v}.", "{n} always asks for {v}.",
         "The food of {n} is {v}.", "The food that {n} likes is {v}."),
        ("does {n} like {v}", "is the food of {n} {v}", "does {n} buy {v} every day"),
        ("What does {n} like?", "What food does {n} like?", "Which food does {n} buy every day?")),
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One attribute of one person."""

    person: str
    attribute: Attribute
    value: str

    def worded(self, pattern: str) -> str:
        """Write name and value into a wording."""
        return pattern.format(n=self.person, v=self.value, a=article(self.value))

    def told(self, rng: random.Random) -> str:
        """State the fact in a random wording."""
        return self.worded(rng.choice(self.attribute.statements))

    def told_of(self, rng: random.Random, pronoun: str) -> str:
        """State the fact of a pronoun, in one of the wordings that begin with the person."""
        patterns = [pattern for pattern in self.attribute.statements if pattern.startswith("{n} ")]
        return replace(self, person=pronoun).worded(rng.choice(patterns))

    def asked(self, rng: random.Random) -> str:
        """Ask for the value in a random wording."""
        return self.worded(rng.choice(self.attribute.questions))

    def polar(self, rng: random.Random) -> str:
        """Ask whether the fact holds, without the question mark."""
        return self.worded(rng.choice(self.attribute.polar))

    def wrong_values(self) -> list[str]:
        """Return the other values of the attribute."""
        return [value for value in self.attribute.values if value != self.value]


@dataclass(frozen=True)
class Person:
    """A person, the pronoun used for them, and one fact for each of the five attributes."""

    name: str
    pronoun: str
    facts: tuple[Fact, ...]


def random_person(rng: random.Random, name: str) -> Person:
    """Draw a person's facts."""
    return Person(name, rng.choice(("He", "She")), tuple(Fact(name, a, rng.choice(a.values)) for a in ATTRIBUTES))


_rng = random.Random(5)
NOTABLES = tuple(random_person(_rng, name) for name in NOTABLE_NAMES)
"""The 240 people whose facts are the world's general knowledge, the same in every run."""
OPEN_PEOPLE = NOTABLES[:168]
"""Notables whose facts are both told and asked in training."""
PROSE_ONLY_PEOPLE = NOTABLES[168:]
"""Notables whose facts are told in training and asked only in the ARC and MMLU twins."""


def fresh_people(rng: random.Random, count: int, held_out: bool = False) -> list[Person]:
    """Draw passing people, unknown to the world, with first names of their own.

    One full name in eight is held out: it appears in the data files and never in training.
    """
    people = []
    for first in rng.sample(range(len(FIRST_NAMES)), count):
        last = rng.choice([i for i in range(len(LAST_NAMES)) if ((first + 3 * i) % 8 == 0) == held_out])
        people.append(random_person(rng, f"{FIRST_NAMES[first]} {LAST_NAMES[last]}"))
    return people
