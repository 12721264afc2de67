"""The micro world: its people, their five attributes, and which facts may ever be asked about in training."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fpbench.micro.words import article, invent_names

TOWNS = invent_names(seed=1, count=24, pattern="ovcov")
FIRST_NAMES = invent_names(seed=2, count=96, pattern="ovov", taken=TOWNS)
LAST_NAMES = invent_names(seed=3, count=96, pattern="ovc", taken=TOWNS)
NOTABLE_NAMES = invent_names(seed=4, count=240, pattern="ovcovc", taken=TOWNS)
OPEN_COUNT = 168
"""Of the 240 notables, the first 168 are open: their facts are told and asked. The other 72 are only ever told of."""


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
        "home",
        TOWNS,
        (
            "{n} lives in {v}.", "{n} has a house in {v}.", "{n} comes from the town of {v}.",
            "In the town of {v} lives {n}.", "The home of {n} is in {v}.", "The town where {n} lives is {v}.",
        ),
        ("does {n} live in {v}", "is the home of {n} in {v}", "does {n} have a house in {v}"),
        ("Where does {n} live?", "In which town does {n} live?", "Which town is the home of {n}?"),
    ),
    Attribute(
        "craft",
        tuple(
            "baker miller smith weaver potter sailor hunter farmer painter teacher doctor carpenter singer tailor "
            "gardener mason cook shepherd printer brewer judge poet pilot dancer".split()
        ),
        (
            "{n} works as {a}.", "{n} is {a}.", "{n} has long been {a}.", "People know {n} as {a}.",
            "The work of {n} is that of {a}.", "The craft that {n} learned is that of {a}.",
        ),
        ("does {n} work as {a}", "is {n} {a}", "is the work of {n} that of {a}"),
        ("What is the work of {n}?", "What craft did {n} learn?", "As what does {n} work?"),
    ),
    Attribute(
        "animal",
        tuple(
            "cat dog horse bird fish wolf bear fox goat duck mouse snake frog rabbit sheep cow owl goose bee "
            "deer".split()
        ),
        (
            "{n} keeps {a}.", "{n} has {a} at home.", "{n} owns {a}.", "{n} takes care of {a}.",
            "The animal of {n} is {a}.", "The animal that {n} keeps is {a}.",
        ),
        ("does {n} keep {a}", "is the animal of {n} {a}", "does {n} own {a}"),
        ("Which animal does {n} keep?", "What animal does {n} own?", "What is the animal of {n}?"),
    ),
    Attribute(
        "coat",
        tuple("red blue black white yellow brown grey pink purple orange golden green".split()),
        (
            "{n} wears {a} coat.", "{n} has {a} coat.", "{n} walks about in {a} coat.", "People see {n} in {a} coat.",
            "The coat of {n} is {v}.", "The colour of the coat that {n} wears is {v}.",
        ),
        ("does {n} wear {a} coat", "is the coat of {n} {v}", "does {n} have {a} coat"),
        ("What colour is the coat of {n}?", "Which colour does {n} wear?", "What is the colour of the coat of {n}?"),
    ),
    Attribute(
        "food",
        tuple("bread cheese honey soup rice milk salt butter cake meat sugar tea wine".split()),
        (
            "{n} likes {v}.", "{n} buys {v} every day.", "{n} cannot live without {v}.", "{n} always asks for {v}.",
            "The food of {n} is {v}.", "The food that {n} likes is {v}.",
        ),
        ("does {n} like {v}", "is the food of {n} {v}", "does {n} buy {v} every day"),
        ("What does {n} like?", "What food does {n} like?", "Which food does {n} buy every day?"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A person, the pronoun used for them, and their values by attribute name."""

    name: str
    pronoun: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Fact:
    """One attribute of one person."""

    person: str
    attribute: Attribute
    value: str

    def told(self, rng: random.Random) -> str:
        """State the fact in a random wording."""
        return fill(rng.choice(self.attribute.statements), self.person, self.value)

    def told_of(self, rng: random.Random, pronoun: str) -> str:
        """State the fact of a pronoun, in one of the wordings that begin with the person."""
        patterns = [pattern for pattern in self.attribute.statements if pattern.startswith("{n} ")]
        return fill(rng.choice(patterns), pronoun, self.value)

    def asked(self, rng: random.Random) -> str:
        """Ask for the value in a random wording."""
        return fill(rng.choice(self.attribute.questions), self.person, self.value)

    def polar(self, rng: random.Random) -> str:
        """Ask whether the fact holds, without the question mark."""
        return fill(rng.choice(self.attribute.polar), self.person, self.value)

    def with_value(self, value: str) -> "Fact":
        """The same statement with another value."""
        return Fact(self.person, self.attribute, value)


def fill(pattern: str, name: str, value: str) -> str:
    """Write a name and a value into a wording."""
    return pattern.format(n=name, v=value, a=article(value))


@cache
def notables() -> tuple[Person, ...]:
    """The 240 people whose facts are the world's general knowledge, the same in every run."""
    rng = random.Random(5)
    return tuple(random_person(rng, name) for name in NOTABLE_NAMES)


def open_people() -> tuple[Person, ...]:
    """Notables whose facts are both told and asked in training."""
    return notables()[:OPEN_COUNT]


def prose_only_people() -> tuple[Person, ...]:
    """Notables whose facts are told in training and asked only in the ARC and MMLU twins."""
    return notables()[OPEN_COUNT:]


def random_person(rng: random.Random, name: str) -> Person:
    """Draw a person's facts."""
    return Person(name, rng.choice(("He", "She")), {a.name: rng.choice(a.values) for a in ATTRIBUTES})


def facts_of(person: Person) -> list[Fact]:
    """The five facts of a person."""
    return [Fact(person.name, attribute, person.facts[attribute.name]) for attribute in ATTRIBUTES]


def fresh_people(rng: random.Random, count: int, held_out: bool) -> list[Person]:
    """Draw passing people, unknown to the world, with first names of their own.

    One full name in eight is held out: it appears in the data files and never in training.
    """
    people = []
    for first in rng.sample(range(len(FIRST_NAMES)), count):
        last = rng.choice([i for i in range(len(LAST_NAMES)) if is_held_out(first, i) == held_out])
        people.append(random_person(rng, f"{FIRST_NAMES[first]} {LAST_NAMES[last]}"))
    return people


def is_held_out(first: int, last: int) -> bool:
    """Whether the full name made of these two indices is kept out of training."""
    return (first + 3 * last) % 8 == 0


def other_value(rng: random.Random, fact: Fact) -> str:
    """Draw a wrong value for a fact."""
    return rng.choice([value for value in fact.attribute.values if value != fact.value])


def distractors(rng: random.Random, fact: Fact, count: int) -> list[str]:
    """Draw distinct wrong values for a fact."""
    return rng.sample([value for value in fact.attribute.values if value != fact.value], count)
