"""The items of the four twins, about people and facts that training never asks about."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from fpbench.micro.corpus import short_passage, some_passage
from fpbench.micro.questions import LETTERS, fact_choice, true_or_false
from fpbench.micro.world import Fact, facts_of, prose_only_people

Row = dict[str, Any]
TWIN_ITEMS = 360


def boolq_rows(seed: int = 101) -> list[Row]:
    """Yes/no questions over passages on people with held-out names; half are yes."""
    rng = random.Random(seed)
    rows = []
    for index in range(TWIN_ITEMS):
        source = some_passage(rng, held_out=True)
        truth = index % 2 == 0
        claim = true_or_false(rng, source, rng.choice(source.facts), truth)
        rows.append({"question": claim.polar(rng), "passage": source.text, "label": int(truth)})
    rng.shuffle(rows)
    return rows


def rte_rows(seed: int = 102) -> list[Row]:
    """Premises on people with held-out names, and hypotheses; half are entailed."""
    rng = random.Random(seed)
    rows = []
    for index in range(TWIN_ITEMS):
        source = short_passage(rng, held_out=True)
        truth = index % 2 == 0
        claim = true_or_false(rng, source, rng.choice(source.facts), truth)
        rows.append({"sentence1": source.text, "sentence2": claim.told(rng), "label": int(not truth)})
    rng.shuffle(rows)
    return rows


def asked_facts() -> list[Fact]:
    """The facts of the ARC and MMLU twins: all five of each of the 72 people who are only told of."""
    return [fact for person in prose_only_people() for fact in facts_of(person)]


def arc_rows(seed: int = 103) -> list[Row]:
    """Four-option questions whose answer is scored as text."""
    rng = random.Random(seed)
    rows = []
    for index, fact in enumerate(asked_facts()):
        choice = fact_choice(rng, fact, index % 4)
        choices = {"text": list(choice.options), "label": list(LETTERS)}
        key = LETTERS[choice.answer]
        rows.append({"id": f"micro-{index}", "question": choice.question, "choices": choices, "answerKey": key})
    rng.shuffle(rows)
    return rows


def mmlu_rows(seed: int = 104) -> list[Row]:
    """Four-option questions whose answer is a letter."""
    rng = random.Random(seed)
    rows = []
    for index, fact in enumerate(asked_facts()):
        choice = fact_choice(rng, fact, index % 4)
        row = {"question": choice.question, "subject": fact.attribute.name}
        rows.append({**row, "choices": list(choice.options), "answer": choice.answer})
    rng.shuffle(rows)
    return rows


TWIN_ROWS: Mapping[str, Callable[[], list[Row]]] = {
    "boolq": boolq_rows, "rte": rte_rows, "arc": arc_rows, "mmlu": mmlu_rows,
}  # fmt: skip
