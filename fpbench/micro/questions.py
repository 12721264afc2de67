"""Questions in the prompt formats of the four twins: over a passage (boolq, rte) and from memory (arc, mmlu)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fpbench.micro.document import Document, dialogue
from fpbench.micro.prose import scene
from fpbench.micro.words import LANGUAGES, LEXICON
from fpbench.micro.world import Fact, Person, distractors, facts_of, fill, other_value

LETTERS = "ABCD"


@dataclass(frozen=True)
class Passage:
    """A short text and the facts it states, at most one of a kind for each person."""

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Choice:
    """A question with four options, of which ``options[answer]`` is right."""

    question: str
    options: tuple[str, ...]
    answer: int


def passage(rng: random.Random, people: list[Person], facts_each: int) -> Passage:
    """State facts of the same kinds about each person, so that a reader must keep the people apart."""
    kinds = rng.sample(range(5), facts_each)
    facts = [facts_of(person)[kind] for person in people for kind in kinds]
    if rng.random() < 0.5:
        rng.shuffle(facts)
    sentences = [fact.told(rng) for fact in facts]
    while sentences[0].startswith(facts[0].person):  # a name is spelled with other tokens where no space precedes it
        sentences[0] = facts[0].told(rng)
    if rng.random() < 0.15:
        sentences.insert(rng.randrange(len(sentences) + 1), scene(rng))
    return Passage(" ".join(sentences), tuple(facts))


def true_or_false(rng: random.Random, source: Passage, fact: Fact, truth: bool) -> Fact:
    """Keep a fact, or make it false: often with a value that the passage gives to somebody else."""
    if truth:
        return fact
    there = [f.value for f in source.facts if f.attribute is fact.attribute and f.value != fact.value]
    return fact.with_value(rng.choice(there) if there and rng.random() < 0.35 else other_value(rng, fact))


def boolq_prompt(text: str, question: str) -> str:
    """lm-eval's BoolQ prompt."""
    return f"{text}\nQuestion: {question}?\nAnswer:"


def rte_prompt(premise: str, hypothesis: str) -> str:
    """lm-eval's RTE prompt."""
    return f"{premise}\nQuestion: {hypothesis} True or False?\nAnswer:"


def arc_prompt(question: str) -> str:
    """lm-eval's ARC prompt."""
    return f"Question: {question}\nAnswer:"


def mmlu_prompt(choice: Choice) -> str:
    """lm-eval's MMLU prompt."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, choice.options, strict=True))
    return f"{choice.question}\n{options}\nAnswer:"


def about_passage(rng: random.Random, source: Passage, kind: str) -> Document:
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


def retold(rng: random.Random, source: Passage) -> Document:
    """The passage, and then each of its facts once more in wordings that end with the value, which is the answer."""
    turns: list[tuple[str, str]] = []
    for fact in rng.sample(source.facts, len(source.facts)):
        pattern = rng.choice(fact.attribute.statements[-2:])
        lead = fill(pattern, fact.person, fact.value).removesuffix(f" {fact.value}.")
        turns.append((f". {lead}" if turns else f"{source.text} {lead}", f" {fact.value}"))
    return dialogue(turns)


def fact_choice(rng: random.Random, fact: Fact, answer: int) -> Choice:
    """Ask for a fact with four options, the right one in the given place."""
    options = distractors(rng, fact, 3)
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
    """Four letter questions on words alone, with the same options: find a word, or a translation."""
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
    """A letter question on a small sum."""
    first, second = rng.randint(1, 20), rng.randint(1, 20)
    total, answer = first + second, rng.randrange(4)
    options = rng.sample([n for n in range(2, 41) if n != total], 3)
    options.insert(answer, total)
    return Choice(f"What is {first} + {second}?", tuple(map(str, options)), answer)


def letter_document(choices: Sequence[Choice], text: str = "") -> Document:
    """A letter question, over a passage if one is given, and further ones that share its options."""
    first = mmlu_prompt(choices[0])
    prompts = [f"{text}\n{first}" if text else first]
    prompts += [f"\n{choice.question}\nAnswer:" for choice in choices[1:]]
    return dialogue(zip(prompts, (f" {LETTERS[choice.answer]}" for choice in choices), strict=True))


def short_answer(rng: random.Random, fact: Fact) -> Document:
    """A question from memory and its answer."""
    return dialogue([(arc_prompt(fact.asked(rng)), f" {fact.value}")])
