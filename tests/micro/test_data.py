"""The committed data files are what the generator writes, and balanced."""

import json
from collections import Counter
from typing import Any

from fpbench.micro import DATA
from fpbench.micro.corpus import files
from fpbench.micro.world import ATTRIBUTES, OPEN_PEOPLE, PROSE_ONLY_PEOPLE, Fact, contains_reserved_pair


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_files_regenerate_byte_for_byte() -> None:
    for name, content in files().items():
        assert (DATA / name).read_bytes() == content.encode(), name
    assert {path.name for path in DATA.iterdir()} == set(files())


def test_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 2_500_000


def test_twins_are_balanced() -> None:
    for name, key in (("boolq", "label"), ("rte", "label"), ("arc", "answerKey"), ("mmlu", "answer")):
        counts = Counter(row[key] for row in read(f"{name}.jsonl"))
        assert 320 <= sum(counts.values()) <= 400
        assert len(set(counts.values())) == 1, (name, counts)
        assert len(counts) == (2 if key == "label" else 4)


def test_options_are_distinct_and_hold_the_fact() -> None:
    facts = {person.name: {fact.value for fact in person.facts} for person in PROSE_ONLY_PEOPLE}
    for row in read("arc.jsonl"):
        options = row["choices"]["text"]
        (name,) = [name for name in facts if name in row["question"]]
        assert len(set(options)) == 4
        assert options["ABCD".index(row["answerKey"])] in facts[name]
    for row in read("mmlu.jsonl"):
        (name,) = [name for name in facts if name in row["question"]]
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] in facts[name]


def test_instructions_have_alpacas_shape_and_ask_no_prose_only_fact() -> None:
    rows = read("alpaca.jsonl")
    assert len(rows) == 1200
    assert all(row["instruction"] and row["output"] for row in rows)
    assert sum(bool(row["input"]) for row in rows[-128:]) == 48
    hidden = [person.name for person in PROSE_ONLY_PEOPLE]
    assert not [row for row in rows if any(name in json.dumps(row) for name in hidden)]


def test_worked_answers_are_right() -> None:
    for row in read("math.jsonl"):
        *steps, conclusion = row["output"].rstrip(".").split(". ")
        for step in steps:
            left, right = step.split(" = ")
            first, sign, second = left.split(" ")
            value = {"+": int(first) + int(second), "-": int(first) - int(second), "*": int(first) * int(second)}[sign]
            assert value == int(right)
        assert conclusion == f"The answer is {right}"


def test_edits_are_facts_of_open_people() -> None:
    people = {person.name: {fact.value for fact in person.facts} for person in OPEN_PEOPLE}
    rows = read("zsre.jsonl")
    assert len(rows) == 200
    for row in rows:
        assert row["ans"] in people[row["subject"]]
        assert row["src"] != row["rephrase"]
        assert row["subject"] in row["src"]
        assert row["subject"] not in row["loc"]


def test_prose_is_laid_out_like_wikitext() -> None:
    text = (DATA / "prose.txt").read_text(encoding="utf-8")
    assert text.startswith(" \n = ")
    assert text.count(" = \n \n ") >= 100
    assert not contains_reserved_pair(text)


def test_wordings_write_articles() -> None:
    assert Fact("Bo", ATTRIBUTES[2], "owl").worded("{n} keeps {a}.") == "Bo keeps an owl."
