"""Instructions in the manner of Alpaca: rows of instruction, input and output, and how they are rendered."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fpbench.micro.document import Document, dialogue
from fpbench.micro.mixed import translate
from fpbench.micro.prose import noun_phrase, scene
from fpbench.micro.questions import Passage
from fpbench.micro.words import ADJECTIVES, LANGUAGES, NOUNS
from fpbench.micro.world import ATTRIBUTES, TOWNS, Fact, Person, facts_of


@dataclass(frozen=True)
class Row:
    """One instruction; ``input`` may be empty."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """The row up to its response."""
        given = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.instruction}\n\n{given}### Response:\n"

    def document(self) -> Document:
        """The row in the benchmark's instruction format."""
        return dialogue([(self.prompt, self.output)])

    def chat(self) -> Document:
        """The row as one exchange in the chat template, less its begin token and last end token."""
        user = f"{self.instruction}\n{self.input}" if self.input else self.instruction
        return dialogue([(f"<|user|>\n{user}</s>\n<|assistant|>\n", self.output)])


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(NOUNS + ADJECTIVES, rng.randint(low, high))


def copying(rng: random.Random) -> Row:
    """Copy a text, or change its case."""
    text = scene(rng) if rng.random() < 0.5 else " ".join(_words(rng, 3, 8))
    return rng.choice((
        Row("Copy the text.", text, text), Row("Repeat the input word for word.", text, text),
        Row("Write the text in upper case.", text, text.upper()),
        Row("Turn the text into capital letters.", text, text.upper()),
        Row("Write the text in lower case.", text.upper(), text.lower()),
    ))  # fmt: skip


def ordering(rng: random.Random) -> Row:
    """Reverse, count or pick words."""
    words = _words(rng, 2, 5)
    text = ", ".join(words)
    return rng.choice((
        Row("Reverse the order of the words.", text, ", ".join(reversed(words))),
        Row("Name the first word of the list.", text, words[0]),
        Row("Name the last word of the list.", text, words[-1]),
        Row("How many words are in the list?", text, str(len(words))),
        Row("Join the words with and.", text, " and ".join(words)),
    ))  # fmt: skip


def listing(rng: random.Random) -> Row:
    """List words of a kind."""
    name, values = rng.choice((
        ("animals", ATTRIBUTES[2].values), ("colours", ATTRIBUTES[3].values), ("foods", ATTRIBUTES[4].values),
        ("crafts", ATTRIBUTES[1].values), ("towns", TOWNS), ("things", NOUNS),
    ))  # fmt: skip
    count = rng.randint(2, 5)
    chosen = rng.sample(values, count)
    if rng.random() < 0.5:
        return Row(f"List {count} {name}.", "", ", ".join(chosen))
    return Row(f"Name {count} {name}, one a line.", "", "\n".join(chosen))


def composing(rng: random.Random) -> Row:
    """Write a sentence or a headline with given words."""
    adjective, noun = noun_phrase(rng)
    sentence = f"The {adjective} {noun} is in {rng.choice(TOWNS)}."
    return rng.choice((
        Row(f"Write a sentence about a {noun} that is {adjective}.", "", sentence),
        Row("Use both words in a sentence.", f"{noun}, {adjective}", sentence),
        Row(f"Write a headline about a {noun} that is {adjective}.", "", f"{adjective} {noun}".upper()),
        Row("Describe something that you can see.", "", scene(rng)), Row("Write one sentence.", "", scene(rng)),
    ))  # fmt: skip


def translating(rng: random.Random) -> Row:
    """Translate a word or a phrase."""
    code = rng.choice(list(LANGUAGES))
    adjective, noun = noun_phrase(rng)
    quality, thing, name = translate(adjective, code), translate(noun, code), LANGUAGES[code]
    return rng.choice((
        Row(f"Translate the word into {name}.", noun, thing),
        Row(f"How do you say {adjective} in {name}?", "", quality),
        Row("Translate the word into English.", thing, noun),
        Row(f"Give the {name} words for {adjective} and {noun}.", "", f"{quality}, {thing}"),
    ))  # fmt: skip


def reading(rng: random.Random, source: Passage) -> Row:
    """Answer a question about a passage."""
    fact = rng.choice(source.facts)
    answer = fact.value if rng.random() < 0.5 else fact.told(rng)
    if rng.random() < 0.5:
        return Row("Answer the question.", f"{source.text}\n{fact.asked(rng)}", answer)
    return Row(fact.asked(rng), source.text, answer)


def recalling(rng: random.Random, person: Person) -> Row:
    """Tell a fact about a notable from memory."""
    fact: Fact = rng.choice(facts_of(person))
    if rng.random() < 0.5:
        return Row(fact.asked(rng), "", fact.told(rng))
    return Row(f"Tell me something about {person.name}.", "", fact.told(rng))


def arithmetic(rng: random.Random, name: str) -> Row:
    """A worded sum, difference, product or two-step problem and its short worked answer."""
    things = rng.choice(("coins", "books", "letters", "hats", "cups", "keys", "stones", "apples", "bells", "maps"))
    a, b, c = rng.randint(2, 20), rng.randint(2, 20), rng.randint(1, 9)
    high, low = max(a, b) + 1, min(a, b)
    m, n = rng.randint(2, 9), rng.randint(2, 9)
    question = rng.choice((f"How many {things} does {name} have now?", f"How many {things} are there?"))
    problem, working, result = rng.choice((
        (f"{name} has {a} {things} and finds {b} more.", f"{a} + {b} = {a + b}.", a + b),
        (f"{name} had {high} {things} and lost {low} of them.", f"{high} - {low} = {high - low}.", high - low),
        (f"{name} has {m} baskets with {n} {things} in each.", f"{m} * {n} = {m * n}.", m * n),
        (
            f"{name} had {a} {things}, bought {b} and was given {c} more.",
            f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}.", a + b + c,
        ),
    ))  # fmt: skip
    return Row(f"{problem} {question}", "", f"{working} The answer is {result}.")


def sums(rng: random.Random) -> Row:
    """A bare sum, difference or product."""
    a, b, m, n = rng.randint(1, 20), rng.randint(1, 20), rng.randint(2, 9), rng.randint(2, 9)
    high, low = max(a, b), min(a, b)
    text, result = rng.choice(((f"{a} + {b}", a + b), (f"{high} - {low}", high - low), (f"{m} * {n}", m * n)))
    return Row(rng.choice((f"What is {text}?", f"Calculate {text}.")), "", str(result))


WORD_TASKS: Sequence[Callable[[random.Random], Row]] = (copying, ordering, listing, composing, translating)
"""The tasks that need no person."""
