"""Prose of the micro world: lives of its people, scenes of its towns, its notices and headlines."""

import random

from fpbench.micro.words import ADJECTIVES, NOUNS, TARGETS, article, is_reserved_pair
from fpbench.micro.world import TOWNS, Person, facts_of

_SCENES = (
    "The {x} {m} stood near the {o}.", "{ax} {m} lay by the {y} {o}.", "Behind the {o} there was {ax} {m}.",
    "The wind came over the {m} and moved the {o}.", "Nobody in {t} had seen such {ax} {m} before.",
    "Near {t} there is {ax} {m} and {ay} {o}.", "The {m} was {x} and the {o} was {y}.",
    "In the morning the {m} looked {x}.", "At night the people of {t} heard the {m} from the {o}.",
    "They carried the {m} to the {o}, because the {o} was {x}.", "The {m} of {t} is {x}, and so is its {o}.",
    "There was {am} on the {o}, and {ao} in the {p}.", "The old people still talk about the {x} {m}.",
    "It rained for three days, and the {m} grew {x}.", "Someone left {am} and {ao} in front of the {p}.",
    "When the {m} was found, it was {x} and {y}.", "From the {m} one can see the {x} {o}.",
    "The children drew {ax} {m} next to the {o}.", "In {t} {ax} {m} costs more than {ay} {o}.",
)  # fmt: skip
_NAMED = (
    "The ship {g} came to {t} with {am} on board.", "A horse called {g} won the race in {t}.",
    "They call the star above the {m} {g}.", "The {g} left {t} in the morning and brought back a {o}.",
    "{g} is the fastest horse in {t}.", "Sailors look for the star {g} when the {m} is {x}.",
    "The names of the ships were {g} and {h}.", "{g} ran past the {m}, and {h} came second.",
)  # fmt: skip
_NOTICES = (
    "NOTICE: THE {x} {m} IS CLOSED.", "FOR SALE: {x} {m}, {y} {o}.", "DO NOT TOUCH THE {m}.", "{x} {m} FOUND IN {t}.",
    "THE {m} OF {t} IS {x} AGAIN.", "{t}: {x} {m}, {y} {o}", "WANTED: {am} AND {ao}.", "{x} {m}", "{y} {o}", "{p} {m}",
)  # fmt: skip


def noun_phrase(rng: random.Random) -> tuple[str, str]:
    """Draw an adjective and a noun that are no reserved pair."""
    while True:
        adjective, noun = rng.choice(ADJECTIVES), rng.choice(NOUNS)
        if not is_reserved_pair(adjective, noun):
            return adjective, noun


def _draw(rng: random.Random, pattern: str) -> str:
    (x, m), (y, o) = noun_phrase(rng), noun_phrase(rng)
    g, h = rng.sample(TARGETS, 2)
    words = {"x": x, "m": m, "y": y, "o": o, "p": rng.choice(NOUNS), "t": rng.choice(TOWNS), "g": g, "h": h}
    articles = {"ax": article(x), "ay": article(y), "am": article(m), "ao": article(o)}
    text = pattern.format(**words, **articles)
    return text[0].upper() + text[1:]


def scene(rng: random.Random) -> str:
    """One sentence about things and places."""
    return _draw(rng, rng.choice(_NAMED if rng.random() < 0.12 else _SCENES))


def notice(rng: random.Random) -> str:
    """An upper-case sign, notice or headline."""
    return _draw(rng, rng.choice(_NOTICES)).upper()


def life(rng: random.Random, person: Person, count: int) -> str:
    """Tell some facts of one person, most often by name, sometimes by pronoun."""
    sentences = []
    for index, fact in enumerate(rng.sample(facts_of(person), count)):
        pronoun = index > 0 and rng.random() < 0.25
        sentences.append(fact.told_of(rng, person.pronoun) if pronoun else fact.told(rng))
    return " ".join(sentences)


def lives(rng: random.Random, people: list[Person]) -> str:
    """A chapter on some people, with a scene now and then."""
    sentences = []
    for person in people:
        sentences.append(life(rng, person, rng.randint(2, 5)))
        if rng.random() < 0.2:
            sentences.append(scene(rng))
    return " ".join(sentences)


def story(rng: random.Random, people: list[Person]) -> str:
    """Plain prose: an optional headline, scenes, and a word about the people who pass through."""
    sentences = [scene(rng) for _ in range(rng.randint(2, 5))]
    sentences += [life(rng, person, rng.randint(1, 2)) for person in people]
    rng.shuffle(sentences)
    if rng.random() < 0.2:
        sentences.insert(rng.randrange(len(sentences) + 1), notice(rng))
    body = " ".join(sentences)
    style = rng.random()
    if style < 0.2:
        return f"{' '.join(noun_phrase(rng)).upper()}\n\n{body}"
    return f" = {title(rng)} = \n \n {body}" if style < 0.4 else body


def title(rng: random.Random) -> str:
    """A capitalised two-word title."""
    return " ".join(noun_phrase(rng)).title()
