"""The training text, an endless seeded stream of documents, and the bundled data files in fresh draws.

``python -m fpbench.micro.corpus`` writes the same data files every time.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from fpbench.micro import DATA, items
from fpbench.micro.items import LETTERS, FactPassage, Instruction
from fpbench.micro.world import (
    ADJECTIVES,
    ATTRIBUTES,
    FIRST_NAMES,
    NOTABLES,
    NOUNS,
    OPEN_PEOPLE,
    PROSE_ONLY_PEOPLE,
    TOWNS,
    Fact,
    contains_reserved_pair,
    fresh_people,
    noun_phrase,
)
from fpbench.micro.writing import WeightedText, dialogue, life, lives, mixed_text, notice, prose, scene, story, title
from fpbench.text import json_lines

_WORDS = (*NOUNS, *ADJECTIVES, *TOWNS, *FIRST_NAMES)


# Drills: many short look-ups in one text. They teach early what the questions then need: to find and to match. Each
# names its key right before the answer. A question asks for the same after a detour, and a model of this size learns
# the detour in few steps once it can look things up, but not both at once.
def _drill(rng: random.Random, text: str, header: str, answers: Mapping[str, str]) -> WeightedText:
    keys = rng.sample(list(answers), min(len(answers) - 1, 6))  # one is left out: none must follow from the others
    if rng.random() < 0.5:
        prompts = [f"{text}\n{header} {keys[0]}:", *(f", {key}:" for key in keys[1:])]
    else:
        prompts = [f"\nQuestion: {key}?\nAnswer:" for key in keys]
        prompts[0] = text + prompts[0]
    return dialogue((prompt, f" {answers[key]}") for prompt, key in zip(prompts, keys, strict=True))


def letter_drill(rng: random.Random) -> WeightedText:
    """Write four options, and the letter of each word."""
    words = rng.sample(_WORDS, 4)
    options = "\n".join(f"{letter}. {word}" for letter, word in zip(LETTERS, words, strict=True))
    return _drill(rng, options, "Letter", dict(zip(words, LETTERS, strict=True)))


def presence_drill(rng: random.Random) -> WeightedText:
    """Write a list of words, and whether each of some words is in it; half are."""
    words = rng.sample(_WORDS, 2 * rng.randint(3, 7))
    half = len(words) // 2
    answers = {word: "yes" if place < half else "no" for place, word in enumerate(words)}
    return _drill(rng, "The words: " + " ".join(words[:half]), "There", answers)


def owner_drill(rng: random.Random, source: FactPassage) -> WeightedText:
    """Write a passage with one fact for each person, and each person's value."""
    return _drill(rng, source.text, "Value", {fact.person: fact.value for fact in source.facts})


def some_passage(rng: random.Random, held_out: bool = False) -> FactPassage:
    """Write a passage on two or three passing people with one or two facts each."""
    people, facts_each = rng.choice(((2, 1), (2, 1), (2, 2), (2, 2), (3, 1)))
    return items.passage(rng, fresh_people(rng, people, held_out), facts_each)


def short_passage(rng: random.Random, held_out: bool = False) -> FactPassage:
    """Write a premise: one or two passing people."""
    people, facts_each = rng.choice(((1, 1), (1, 2), (1, 3), (2, 1), (2, 1), (2, 2)))
    return items.passage(rng, fresh_people(rng, people, held_out), facts_each)


def _apart(facts: Iterable[Fact]) -> list[Fact]:
    """Return one fact for each value, four at most."""
    return list({fact.value: fact for fact in facts}.values())[:4]


def _lettered(rng: random.Random) -> WeightedText:
    kind = rng.randrange(len(ATTRIBUTES))
    facts = _apart(person.facts[kind] for person in rng.sample(OPEN_PEOPLE, rng.randint(1, 5)))
    return items.letter_document(items.fact_choices(rng, facts))


def _lettered_passage(rng: random.Random) -> WeightedText:
    source = some_passage(rng)
    attribute = rng.choice(source.facts).attribute
    facts = _apart(fact for fact in source.facts if fact.attribute is attribute)
    return items.letter_document(items.fact_choices(rng, rng.sample(facts, len(facts))), source.text)


def _worded(rng: random.Random) -> WeightedText:
    return items.letter_document(items.word_choices(rng) if rng.random() < 0.9 else [items.number_choice(rng)])


def _shown(rng: random.Random, row: Instruction) -> WeightedText:
    return row.chat() if rng.random() < 0.25 else row.document()


def _copied(rng: random.Random) -> WeightedText:
    text = " ".join(rng.sample(_WORDS, rng.randint(6, 16)))
    return _shown(rng, Instruction("Copy the text.", text, text))


def _instruction(rng: random.Random) -> WeightedText:
    kind = rng.random()
    if kind < 0.15:
        return _shown(rng, items.reading(rng, some_passage(rng)))
    if kind < 0.3:
        return _shown(rng, items.recalling(rng, rng.choice(OPEN_PEOPLE)))
    return _shown(rng, rng.choice(items.WORD_TASKS)(rng))


def _arithmetic(rng: random.Random) -> WeightedText:
    if rng.random() < 0.4:
        return _shown(rng, items.sums(rng))
    return _shown(rng, items.arithmetic(rng, fresh_people(rng, 1)[0].name))


def _mixed(rng: random.Random) -> WeightedText:
    return prose(mixed_text(rng))


# Kinds of documents, with their shares up to a common factor: early, when only reading is to be learned, and later.
MIXTURE: Mapping[Callable[[random.Random], WeightedText], tuple[float, float]] = {
    letter_drill: (26, 3),
    presence_drill: (14, 3),
    lambda rng: owner_drill(rng, items.passage(rng, fresh_people(rng, rng.randint(3, 5)), 1)): (20, 3),
    lambda rng: prose(lives(rng, rng.sample(NOTABLES, rng.randint(1, 3)))): (2, 26),
    lambda rng: items.about_passage(rng, some_passage(rng), "boolq"): (5, 12),
    lambda rng: items.about_passage(rng, short_passage(rng), "rte"): (5, 11),
    lambda rng: items.about_passage(rng, some_passage(rng), "arc"): (8, 6),
    lambda rng: items.retold(rng, items.passage(rng, fresh_people(rng, rng.randint(2, 4)), rng.randint(1, 2))): (8, 3),
    _copied: (6, 1),
    lambda rng: items.short_answer(rng, rng.choice(rng.choice(OPEN_PEOPLE).facts)): (1, 10),
    _lettered: (1, 14),
    _lettered_passage: (2, 7),
    _worded: (8, 8),
    _instruction: (3, 13),
    _arithmetic: (1, 5),
    lambda rng: prose(story(rng, fresh_people(rng, rng.randint(0, 2)))): (1, 8),
    _mixed: (12, 50),
    lambda rng: prose("\n".join(notice(rng) for _ in range(rng.randint(1, 2)))): (1, 2),
}
EARLY_DOCUMENTS = 60_000


def documents(seed: int, start: int = 0) -> Iterator[WeightedText]:
    """Write training documents for ever. None contains a reserved pair.

    ``start`` is the place in the stream to begin at, which decides how many are still to be early ones.
    """
    rng = random.Random(seed)
    kinds = list(MIXTURE)
    for index in count(start):
        stage = int(index >= EARLY_DOCUMENTS)
        document = rng.choices(kinds, [shares[stage] for shares in MIXTURE.values()])[0](rng)
        if not contains_reserved_pair(document.text):
            yield document


# The bundled data: items of the four twins, about people and facts that training never asks about, and other rows.

TaskRow = dict[str, Any]
TWIN_ITEMS = 360


def _claims(rng: random.Random, write: Callable[..., FactPassage]) -> Iterator[tuple[str, Fact, bool]]:
    """Yield passages on people with held-out names, each with a claim; every other claim is true."""
    for index in range(TWIN_ITEMS):
        source = write(rng, held_out=True)
        truth = index % 2 == 0
        yield source.text, items.true_or_false(rng, source, rng.choice(source.facts), truth), truth


def boolq_rows(seed: int = 101) -> list[TaskRow]:
    """Write yes/no questions over passages on people with held-out names; half are yes."""
    rng = random.Random(seed)
    claims = _claims(rng, some_passage)
    rows = [{"question": claim.polar(rng), "passage": text, "label": int(truth)} for text, claim, truth in claims]
    rng.shuffle(rows)
    return rows


def rte_rows(seed: int = 102) -> list[TaskRow]:
    """Write premises on people with held-out names, and hypotheses; half are entailed."""
    rng = random.Random(seed)
    claims = _claims(rng, short_passage)
    rows = [{"sentence1": text, "sentence2": claim.told(rng), "label": int(not truth)} for text, claim, truth in claims]
    rng.shuffle(rows)
    return rows


def asked_facts() -> list[Fact]:
    """Return the facts of the ARC and MMLU twins: all five of each of the 72 people who are only told of."""
    return [fact for person in PROSE_ONLY_PEOPLE for fact in person.facts]


def arc_rows(seed: int = 103) -> list[TaskRow]:
    """Return four-option questions whose answer is scored as text."""
    rng = random.Random(seed)
    rows = []
    for index, fact in enumerate(asked_facts()):
        choice = items.fact_choice(rng, fact, index % 4)
        row = {"id": f"micro-{index}", "question": choice.question}
        choices = {"text": list(choice.options), "label": list(LETTERS)}
        rows.append({**row, "choices": choices, "answerKey": LETTERS[choice.answer]})
    rng.shuffle(rows)
    return rows


def mmlu_rows(seed: int = 104) -> list[TaskRow]:
    """Return four-option questions whose answer is a letter."""
    rng = random.Random(seed)
    rows = []
    for index, fact in enumerate(asked_facts()):
        choice = items.fact_choice(rng, fact, index % 4)
        row = {"question": choice.question, "subject": fact.attribute.name}
        rows.append({**row, "choices": list(choice.options), "answer": choice.answer})
    rng.shuffle(rows)
    return rows


TWIN_ROWS: Mapping[str, Callable[[], list[TaskRow]]] = {
    "boolq": boolq_rows, "rte": rte_rows, "arc": arc_rows, "mmlu": mmlu_rows,
}  # fmt: skip
ALPACA_ROWS = MATH_ROWS = 1200
TEXTS = 400
EDITS = 200
ARTICLES = 130
WITH_INPUT = (1, 4, 6)  # rows of every eight that have an input, as in Alpaca three eighths


def _unreserved(draw: Callable[[], str]) -> str:
    while contains_reserved_pair(text := draw()):
        pass
    return text


def prose_text(seed: int = 105) -> str:
    """Held-out articles in WikiText's raw layout, about people with held-out names."""
    rng = random.Random(seed)

    def article() -> str:
        people = [fresh_people(rng, rng.randint(1, 2), held_out=True) for _ in range(rng.randint(2, 4))]
        body = "\n ".join(story(rng, group).split("\n")[-1].strip() for group in people)
        return f" \n = {title(rng)} = \n \n {body} \n"

    return "".join(_unreserved(article) for _ in range(ARTICLES))


def texts(seed: int = 106) -> list[TaskRow]:
    """Write documents of several paragraphs like those of the training prose."""
    rng = random.Random(seed)

    def text() -> str:
        plain = story(rng, fresh_people(rng, 2))
        parts = [plain, lives(rng, rng.sample(NOTABLES, 2)), mixed_text(rng)]
        return "\n\n".join(rng.sample(parts, len(parts)))

    return [{"text": _unreserved(text)} for _ in range(TEXTS)]


def _rewording(rng: random.Random) -> Instruction:
    """Write word tasks that training does not have."""
    words = rng.sample(NOUNS + ADJECTIVES, rng.randint(3, 6))
    text = ", ".join(words)
    old, new = words[0], rng.choice(NOUNS)
    return rng.choice((
        Instruction("Sort these words by the alphabet.", text, ", ".join(sorted(words))),
        Instruction("Please find the longest of the words.", text, max(words, key=len)),
        Instruction("Write every word on a line of its own.", text, "\n".join(words)),
        Instruction(f"Replace {old} by {new} in the list.", text, ", ".join([new, *words[1:]])),
        Instruction("Leave out the last word.", text, ", ".join(words[:-1])),
        Instruction("Put the sentence between quotation marks.", (sentence := scene(rng)), f'"{sentence}"'),
    ))  # fmt: skip


def _writing(rng: random.Random) -> Instruction:
    """Write freely, in ways that training does not have."""
    person = fresh_people(rng, 1, held_out=True)[0]
    adjective, noun = noun_phrase(rng)
    town, other = rng.choice(TOWNS), rng.choice(NOUNS)
    return rng.choice((
        Instruction(f"Write a short note about {person.name}.", "", life(rng, person, 3)),
        Instruction("Make up a person and tell me about them.", "", life(rng, person, 3)),
        Instruction(f"Tell a story of two sentences that is set in {town}.", "", f"{scene(rng)} {scene(rng)}"),
        Instruction(f"What could one put next to a {noun}?", "", f"One could put a {other} next to the {noun}."),
        Instruction(f"Why is the {noun} {adjective}?", "", f"The {noun} is {adjective} because of the {other}."),
        Instruction(f"Give me three words for a story about a {noun}.", "", ", ".join(rng.sample(ADJECTIVES, 3))),
    ))  # fmt: skip


def _describing(rng: random.Random) -> Instruction:
    """Sum up a passage on one person."""
    person = fresh_people(rng, 1, held_out=True)[0]
    facts = rng.sample(person.facts, 3)
    told = " ".join(fact.told(rng) for fact in facts)
    return Instruction(f"Say in one sentence who {person.name} is.", told, facts[0].told(rng))


def alpaca_rows(seed: int = 107) -> list[TaskRow]:
    """Write instructions in fresh draws, about half of kinds that training does not have."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[random.Random], Instruction], ...] = (
        _rewording, _writing, _describing, *items.WORD_TASKS,
        lambda rng: items.reading(rng, some_passage(rng, held_out=True)),
        lambda rng: items.recalling(rng, rng.choice(OPEN_PEOPLE)),
    )  # fmt: skip
    weights = (4, 6, 2, 1, 1, 1, 1, 1, 1, 1)
    rows: list[TaskRow] = []
    while len(rows) < ALPACA_ROWS:
        row = rng.choices(kinds, weights)[0](rng)
        if bool(row.input) == (len(rows) % 8 in WITH_INPUT) and not contains_reserved_pair(row.document().text):
            rows.append({"instruction": row.instruction, "input": row.input, "output": row.output})
    return rows


def math_rows(seed: int = 108) -> list[TaskRow]:
    """Return worded problems with worked answers, about people with held-out names."""
    rng = random.Random(seed)
    rows = (items.arithmetic(rng, fresh_people(rng, 1, held_out=True)[0].name) for _ in range(MATH_ROWS))
    return [{"instruction": row.instruction, "output": row.output} for row in rows]


def zsre_rows(seed: int = 109) -> list[TaskRow]:
    """Write facts of open people: a question in two wordings, and one about somebody else whose answer must stay."""
    rng = random.Random(seed)
    rows = []
    for _ in range(EDITS):
        person, other = rng.sample(OPEN_PEOPLE, 2)
        fact, kept = rng.choice(person.facts), rng.choice(other.facts)
        patterns = rng.sample(fact.attribute.questions, 2)
        asked = {"src": fact.worded(patterns[0]), "rephrase": fact.worded(patterns[1]), "ans": fact.value}
        rows.append({"subject": person.name, **asked, "loc": kept.asked(rng), "loc_ans": kept.value})
    return rows


def files() -> dict[str, str]:
    """Return every data file's name and content."""
    kinds = {**TWIN_ROWS, "alpaca": alpaca_rows, "math": math_rows, "text": texts, "zsre": zsre_rows}
    return {f"{name}.jsonl": json_lines(rows()) for name, rows in kinds.items()} | {"prose.txt": prose_text()}


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name, content in files().items():
        (DATA / name).write_text(content, encoding="utf-8", newline="\n")
