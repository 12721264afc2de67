"""Questions in the prompt formats of the four twins: over a passage (boolq, rte) and from memory (arc, mmlu)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fpbench.micro.world import ADJECTIVES, ATTRIBUTES, LANGUAGES, LEXICON, NOUNS, TOWNS, Fact, Person, noun_phrase
from fpbench.micro.writing import WeightedText, dialogue, scene, translate

LETTERS = "ABCD"


@dataclass(frozen=True)
class FactPassage:
    """A short text and the facts it states, at most one of a kind for each person."""

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Choice:
    """A question with four options, of which ``options[answer]`` is right."""

    question: str
    options: tuple[str, ...]
    answer: int


def passage(rng: random.Random, people: list[Person], facts_each: int) -> FactPassage:
    """State facts of the same kinds about each person, so that a reader must keep the people apart."""
    kinds = rng.sample(range(5), facts_each)
    facts = [person.facts[kind] for person in people for kind in kinds]
    if rng.random() < 0.5:
        rng.shuffle(facts)
    sentences = [fact.told(rng) for fact in facts]
    while sentences[0].startswith(facts[0].person):  # a name is spelled with other tokens where no space precedes it
        sentences[0] = facts[0].told(rng)
    if rng.random() < 0.15:
        sentences.insert(rng.randrange(len(sentences) + 1), scene(rng))
    return FactPassage(" ".join(sentences), tuple(facts))


def true_or_false(rng: random.Random, source: FactPassage, fact: Fact, truth: bool) -> Fact:
    """Keep a fact, or make it false: often with a value that the passage gives to somebody else."""
    if truth:
        return fact
    there = [f.value for f in source.facts if f.attribute is fact.attribute and f.value != fact.value]
    return replace(fact, value=rng.choice(there if there and rng.random() < 0.35 else fact.wrong_values()))


def boolq_prompt(text: str, question: str) -> str:
    """Return lm-eval's BoolQ prompt."""
    return f"{text}\nQuestion: {question}?\nAnswer:"


def rte_prompt(premise: str, hypothesis: str) -> str:
    """Return lm-eval's RTE prompt."""
    return f"{premise}\nQuestion: {hypothesis} True or False?\nAnswer:"


def arc_prompt(question: str) -> str:
    """Return lm-eval's ARC prompt."""
    return f"Question: {question}\nAnswer:"


def mmlu_prompt(choice: Choice) -> str:
    """Return lm-eval's MMLU prompt."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, choice.options, strict=True))
    return f"{choice.question}\n{options}\nAnswer:"


def about_passage(rng: random.Random, source: FactPassage, kind: str) -> WeightedText:
    """Ask two to four questions of one kind (boolq, rte or arc) over a passage, one after the other."""
    turns: list[tuple[str, str]] = []
    text = source.text
    for fact in rng.choices(source.facts, k=rng.randint(2, 4)):
        truth = rng.random() < 0.5
        claim = true_or_false(rng, source, fact, truth)
        if kind == "boolq":
            turns.append((boolq_prompt(text, claim.polar(rng)), " yes" if truth else " no"))
        elif kind == "rte":
            turns.append((rte_prompt(text, claim.told(rng)), " True" if truth else " False"))
        else:
            turns.append((f"{text}\n{arc_prompt(fact.asked(rng))}", f" {fact.value}"))
        text = ""
    return dialogue(turns)


def retold(rng: random.Random, source: FactPassage) -> WeightedText:
    """Write the passage, and then each of its facts once more in wordings that end with the value, the answer."""
    turns: list[tuple[str, str]] = []
    for fact in rng.sample(source.facts, len(source.facts)):
        lead = fact.worded(rng.choice(fact.attribute.statements[-2:])).removesuffix(f" {fact.value}.")
        turns.append((f". {lead}" if turns else f"{source.text} {lead}", f" {fact.value}"))
    return dialogue(turns)


def fact_choice(rng: random.Random, fact: Fact, answer: int) -> Choice:
    """Ask for a fact with four options, the right one in the given place."""
    options = rng.sample(fact.wrong_values(), 3)
    options.insert(answer, fact.value)
    return Choice(fact.asked(rng), tuple(options), answer)


def fact_choices(rng: random.Random, facts: Sequence[Fact]) -> list[Choice]:
    """Ask for facts of one kind but different values, all with the same four options."""
    values = [fact.value for fact in facts]
    others = [value for value in facts[0].attribute.values if value not in values]
    options = values + rng.sample(others, 4 - len(values))
    rng.shuffle(options)
    asked = rng.choices(facts, k=len(facts))  # with repetition: the last answer must not follow from the others
    return [Choice(fact.asked(rng), tuple(options), options.index(fact.value)) for fact in asked]


def word_choices(rng: random.Random) -> list[Choice]:
    """Write four letter questions on words alone, with the same options: find a word, or a translation."""
    entries = rng.sample(LEXICON, 4)
    code, name = rng.choice(list(LANGUAGES.items()))
    english = [entry.english for entry in entries]
    foreign = [entry.translations[code] for entry in entries]
    asked, options, pattern = rng.choice((
        (english, english, "Which of these is {}?"),
        (english, english, "Find the word {}."),
        ([word.upper() for word in english], [word.upper() for word in english], "Find the word {}."),
        (english, foreign, f"What is {{}} in {name}?"),
        (foreign, english, "What does {} mean?"),
    ))  # fmt: skip
    return [Choice(pattern.format(asked[place]), tuple(options), place) for place in rng.choices(range(4), k=4)]


def number_choice(rng: random.Random) -> Choice:
    """Write a letter question on a small sum."""
    first, second = rng.randint(1, 20), rng.randint(1, 20)
    total, answer = first + second, rng.randrange(4)
    options = rng.sample([n for n in range(2, 41) if n != total], 3)
    options.insert(answer, total)
    return Choice(f"What is {first} + {second}?", tuple(map(str, options)), answer)


def letter_document(choices: Sequence[Choice], text: str = "") -> WeightedText:
    """Write a letter question, over a passage if one is given, and further ones that share its options."""
    first = mmlu_prompt(choices[0])
    prompts = [f"{text}\n{first}" if text else first]
    prompts += [f"\n{choice.question}\nAnswer:" for choice in choices[1:]]
    return dialogue(zip(prompts, (f" {LETTERS[choice.answer]}" for choice in choices), strict=True))


def short_answer(rng: random.Random, fact: Fact) -> WeightedText:
    """Write a question from memory and its answer."""
    return dialogue([(arc_prompt(fact.asked(rng)), f" {fact.value}")])


@dataclass(frozen=True)
class Instruction:
    """One row in the manner of Alpaca; ``input`` may be empty."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """Return the row up to its response."""
        given = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.instruction}\n\n{given}### Response:\n"

    def document(self) -> WeightedText:
        """Return the row in the benchmark's instruction format."""
        return dialogue([(self.prompt, self.output)])

    def chat(self) -> WeightedText:
        """Return the row as one exchange in the chat template, less its begin token and last end token."""
        user = f"{self.instruction}\n{self.input}" if self.input else self.instruction
        return dialogue([(f"<|user|>\n{user}</s>\n<|assistant|>\n", self.output)])


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(NOUNS + ADJECTIVES, rng.randint(low, high))


def copying(rng: random.Random) -> Instruction:
    """Copy a text, or change its case."""
    text = scene(rng) if rng.random() < 0.5 else " ".join(_words(rng, 3, 8))
    return rng.choice((
        Instruction("Copy the text.", text, text), Instruction("Repeat the input word for word.", text, text),
        Instruction("Write the text in upper case.", text, text.upper()),
        Instruction("Turn the text into capital letters.", text, text.upper()),
        Instruction("Write the text in lower case.", text.upper(), text.lower()),
    ))  # fmt: skip


def ordering(rng: random.Random) -> Instruction:
    """Reverse, count or pick words."""
    words = _words(rng, 2, 5)
    text = ", ".join(words)
    return rng.choice((
        Instruction("Reverse the order of the words.", text, ", ".join(reversed(words))),
        Instruction("Name the first word of the list.", text, words[0]),
        Instruction("Name the last word of the list.", text, words[-1]),
        Instruction("How many words are in the list?", text, str(len(words))),
        Instruction("Join the words with and.", text, " and ".join(words)),
    ))  # fmt: skip


def listing(rng: random.Random) -> Instruction:
    """List words of a kind."""
    name, values = rng.choice((
        ("animals", ATTRIBUTES[2].values), ("colours", ATTRIBUTES[3].values), ("foods", ATTRIBUTES[4].values),
        ("crafts", ATTRIBUTES[1].values), ("towns", TOWNS), ("things", NOUNS),
    ))  # fmt: skip
    count = rng.randint(2, 5)
    chosen = rng.sample(values, count)
    if rng.random() < 0.5:
        return Instruction(f"List {count} {name}.", "", ", ".join(chosen))
    return Instruction(f"Name {count} {name}, one a line.", "", "\n".join(chosen))


def composing(rng: random.Random) -> Instruction:
    """Write a sentence or a headline with given words."""
    adjective, noun = noun_phrase(rng)
    sentence = f"The {adjective} {noun} is in {rng.choice(TOWNS)}."
    return rng.choice((
        Instruction(f"Write a sentence about a {noun} that is {adjective}.", "", sentence),
        Instruction("Use both words in a sentence.", f"{noun}, {adjective}", sentence),
        Instruction(f"Write a headline about a {noun} that is {adjective}.", "", f"{adjective} {noun}".upper()),
        Instruction("Describe something that you can see.", "", scene(rng)),
        Instruction("Write one sentence.", "", scene(rng)),
    ))  # fmt: skip


def translating(rng: random.Random) -> Instruction:
    """Translate a word or a phrase."""
    code = rng.choice(list(LANGUAGES))
    adjective, noun = noun_phrase(rng)
    quality, thing, name = translate(adjective, code), translate(noun, code), LANGUAGES[code]
    return rng.choice((
        Instruction(f"Translate the word into {name}.", noun, thing),
        Instruction(f"How do you say {adjective} in {name}?", "", quality),
        Instruction("Translate the word into English.", thing, noun),
        Instruction(f"Give the {name} words for {adjective} and {noun}.", "", f"{quality}, {thing}"),
    ))  # fmt: skip


def reading(rng: random.Random, source: FactPassage) -> Instruction:
    """Answer a question about a passage."""
    fact = rng.choice(source.facts)
    answer = fact.value if rng.random() < 0.5 else fact.told(rng)
    if rng.random() < 0.5:
        return Instruction("Answer the question.", f"{source.text}\n{fact.asked(rng)}", answer)
    return Instruction(fact.asked(rng), source.text, answer)


def recalling(rng: random.Random, person: Person) -> Instruction:
    """Tell a fact about a notable from memory."""
    fact = rng.choice(person.facts)
    if rng.random() < 0.5:
        return Instruction(fact.asked(rng), "", fact.told(rng))
    return Instruction(f"Tell me something about {person.name}.", "", fact.told(rng))


def arithmetic(rng: random.Random, name: str) -> Instruction:
    """Write a worded sum, difference, product or two-step problem and its short worked answer."""
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
    return Instruction(f"{problem} {question}", "", f"{working} The answer is {result}.")


def sums(rng: random.Random) -> Instruction:
    """Write a bare sum, difference or product."""
    a, b, m, n = rng.randint(1, 20), rng.randint(1, 20), rng.randint(2, 9), rng.randint(2, 9)
    high, low = max(a, b), min(a, b)
    text, result = rng.choice(((f"{a} + {b}", a + b), (f"{high} - {low}", high - low), (f"{m} * {n}", m * n)))
    return Instruction(rng.choice((f"What is {text}?", f"Calculate {text}.")), "", str(result))


# The tasks that need no person.
WORD_TASKS: Sequence[Callable[[random.Random], Instruction]] = (copying, ordering, listing, composing, translating)
