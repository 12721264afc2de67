"""Texts whose stretches weigh differently in training, and the prose of the micro world in six languages."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fpbench.micro.world import LANGUAGES, LEXICON, NOUNS, TARGETS, TOWNS, Person, Word, article, noun_phrase

# Loss weights. A prompt cannot be predicted anyway: passages on unknown people, questions, instructions.
PROMPT = 0.1
PROSE = 1.0
ANSWER = 5.0


@dataclass(frozen=True)
class Piece:
    """A stretch of text and the loss weight of its tokens."""

    text: str
    weight: float


@dataclass(frozen=True)
class WeightedText:
    """A text in pieces, without the begin and end tokens."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(piece.text for piece in self.pieces)


def prose(text: str) -> WeightedText:
    """Write a document without answers."""
    return WeightedText((Piece(text, PROSE),))


def dialogue(turns: Iterable[tuple[str, str]]) -> WeightedText:
    """Write prompts and their answers in turn; an answer carries its own leading space, if any."""
    return WeightedText(tuple(piece for turn in turns for piece in (Piece(turn[0], PROMPT), Piece(turn[1], ANSWER))))


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


def _draw(rng: random.Random, pattern: str) -> str:
    (x, m), (y, o) = noun_phrase(rng), noun_phrase(rng)
    g, h = rng.sample(TARGETS, 2)
    words = {"x": x, "m": m, "y": y, "o": o, "p": rng.choice(NOUNS), "t": rng.choice(TOWNS), "g": g, "h": h}
    articles = {"ax": article(x), "ay": article(y), "am": article(m), "ao": article(o)}
    text = pattern.format(**words, **articles)
    return text[0].upper() + text[1:]


def scene(rng: random.Random) -> str:
    """Write one sentence about things and places."""
    return _draw(rng, rng.choice(_NAMED if rng.random() < 0.12 else _SCENES))


def notice(rng: random.Random) -> str:
    """Write an upper-case sign, notice or headline."""
    return _draw(rng, rng.choice(_NOTICES)).upper()


def life(rng: random.Random, person: Person, count: int) -> str:
    """Tell some facts of one person, most often by name, sometimes by pronoun."""
    sentences = []
    for index, fact in enumerate(rng.sample(person.facts, count)):
        pronoun = index > 0 and rng.random() < 0.25
        sentences.append(fact.told_of(rng, person.pronoun) if pronoun else fact.told(rng))
    return " ".join(sentences)


def lives(rng: random.Random, people: list[Person]) -> str:
    """Write a chapter on some people, with a scene now and then."""
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
    """Write a capitalised two-word title."""
    return " ".join(noun_phrase(rng)).title()


# Code-mixed and parallel text in the five languages of the lexicon.

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
    """Write sentences that say what words mean."""
    return " ".join(_meaning(rng, word) for word in rng.sample(LEXICON, rng.randint(2, 5)))


def mixed_sentence(rng: random.Random) -> str:
    """Write a scene whose lexicon words are partly replaced by translations into one or two languages."""
    codes = rng.sample(list(LANGUAGES), rng.randint(1, 2))
    words = []
    for token in scene(rng).split(" "):
        core = token.strip(".,")
        if core in _BY_ENGLISH and rng.random() < 0.7:
            token = token.replace(core, translate(core, rng.choice(codes)))
        words.append(token)
    return " ".join(words)


def mixed_phrase(rng: random.Random) -> str:
    """Write a two-word phrase with each word in a language of its own, often upper-case, sometimes explained."""
    english = noun_phrase(rng)
    codes = zip(english, rng.sample(["en", *LANGUAGES], 2), strict=True)
    phrase = " ".join(word if code == "en" else translate(word, code) for word, code in codes)
    shown = f"{phrase} = {' '.join(english)}" if rng.random() < 0.5 else phrase
    return shown.upper() if rng.random() < 0.5 else shown


def phrases(rng: random.Random) -> str:
    """Write a few mixed phrases, one a line."""
    return "\n".join(mixed_phrase(rng) for _ in range(rng.randint(1, 4)))


def sentences(rng: random.Random) -> str:
    """Write a few mixed sentences."""
    return " ".join(mixed_sentence(rng) for _ in range(rng.randint(1, 3)))


def mixed_text(rng: random.Random) -> str:
    """Any of the above."""
    kinds: tuple[Callable[[random.Random], str], ...] = (dictionary, meanings, sentences, phrases)
    return rng.choice(kinds)(rng)
