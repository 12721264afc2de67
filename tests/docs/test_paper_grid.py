"""docs/paper-grid.md: its commands parse, the quick ones run, and what it counts is what is planned."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from fpbench.board.reported import published
from fpbench.cli import main
from fpbench.metrics.queries import build_queries
from fpbench.records.cell import BASE
from fpbench.runs.plan import checkpoints, plan
from fpbench.runs.profile import PROFILES, load_profile
from fpbench.runs.search import FINE_TUNING_RATES, INJECTION_RATES
from tests.docs.markdown import blocks, commands, names, read, table
from tests.docs.test_memory import SHAPES, footprint
from tests.docs.test_protocol import EXAMPLES

DOCUMENT = read("paper-grid.md")
COMMANDS = commands(DOCUMENT)
PAPER = load_profile("paper")


def arguments(command: str) -> list[str]:
    return command.split()[1:]


def test_its_dry_run_of_a_part_runs_and_writes_nothing(hub: Any, tmp_path: Path, monkeypatch, capsys):
    whole, command = (each for each in COMMANDS if each.endswith("--dry-run"))
    assert whole == "fpbench run --profile paper --dry-run"  # tests/runs/test_estimate.py runs it
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(arguments(command)) == 0
    captured = capsys.readouterr()
    assert "on one card of " in captured.err and captured.out.startswith("Llama-3.2-3B-Instruct/")
    assert list(folder.iterdir()) == []


def test_doctor_says_of_everything_that_it_cannot_be_had(hub: Any, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "fpbench doctor paper" in COMMANDS
    assert main(["doctor", "paper"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for thing in (*(f"model {each.label}" for each in PAPER.models), *(f"data {name}" for name in PAPER.data)):
        assert [line for line in lines if line.startswith(f"FAIL  {thing}: ")], thing


def test_fetching_ends_with_2_where_a_file_is_missing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (PROFILES / "micro.toml").read_text(encoding="utf-8")
    Path("mine.toml").write_text(text.replace('"bundled:zsre.jsonl"', '"zsre.jsonl"'), encoding="utf-8")
    assert main(["fetch", "mine.toml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "'zsre.jsonl': expected a readable file" in captured.err


def test_its_own_sources_make_a_profile(tmp_path: Path):
    text = (PROFILES / "paper.toml").read_text(encoding="utf-8")
    (changed,) = blocks(DOCUMENT, "toml")
    lines = {key: line for line, key in re.findall(r"^((\w+) = .*)$", changed, flags=re.M)}
    assert lines.keys() == {"calibration", "math"}
    for key, line in lines.items():
        text, count = re.subn(rf"^{key} = .*$", line, text, flags=re.M)
        assert count == 1
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    profile = load_profile(str(tmp_path / "mine.toml"))
    assert profile.data["calibration"] == f"{tmp_path}/c4.jsonl"
    assert profile.data["boolq"] == PAPER.data["boolq"]


def test_the_work_it_counts_is_what_is_planned():
    cells = plan(PAPER)
    groups = checkpoints(cells)
    injected = sum(group[0].method != BASE for group in groups)
    conditions = Counter(cell.condition for cell in cells)
    tuned = [name for name in PAPER.conditions if name.startswith("finetune")]
    triggers = [f"TRIGGER {letter}" for letter in "ABCDEFGHIJ"]
    sizes = PAPER.sizes
    words = [f"word{number}" for number in range(sizes.substitute_words)]
    queries = build_queries(["a context"] * 303, triggers, words, substitutions=sizes.substitutions)
    measured = Counter(cell.metric for cell in cells)
    expected = {
        "cells": [len(cells)],
        "checkpoints, of which injected": [len(groups), injected],
        "fine-tunings of 6,000 rows, 3 epochs each": [sum(conditions[name] for name in tuned)],
        "further ones while rates are searched, at most": [len(FINE_TUNING_RATES) * len(PAPER.models) * len(tuned)],
        "injections while `lora`'s rate is searched": [
            len(INJECTION_RATES) * len(PAPER.models) * len(PAPER.fingerprints)
        ],
        "prunings": [conditions["ria30"] + conditions["ria40"]],
        "accidental-trigger queries, at 303 contexts": [measured["triggers"] * sum(map(len, queries.values()))],
        "utility questions": [measured["utility"] * sum(EXAMPLES.values())],
    }
    rows = table(DOCUMENT, "| what | how often ")
    assert {row["what"]: row["how often"] for row in rows} == {
        what: ", ".join(f"{number:,}" for number in counted) for what, counted in expected.items()
    }
    assert [(PAPER.modifications[name]["rows"], PAPER.modifications[name]["epochs"]) for name in tuned] == [
        (6000, 3)
    ] * 2


def test_the_disk_it_counts_is_that_of_the_shapes():
    rows = {row["model"]: row for row in table(DOCUMENT, "| model | weights ")}
    assert rows.keys() == SHAPES.keys()
    for name, row in rows.items():
        found, methods = footprint(name)
        stored = sum(method.stored(found, 10) for method in methods.values())
        sizes = [found.weights, stored, found.spectra(methods.values())]
        assert [row[key] for key in ("weights", "injections of one set", "key statistics")] == [
            f"{size / 2**30:.1f}" for size in sizes
        ]


def test_the_base_s_figures_are_the_paper_s():
    expected = {
        model: published()["effectiveness_and_utility"][key]["none"] for key, model in published()["models"].items()
    }
    rows = {row["model"]: row for row in table(DOCUMENT, "| model | WikiText-2 ")}
    assert list(rows) == [each.path for each in PAPER.models]
    for model, row in rows.items():
        assert row["WikiText-2 perplexity"] == f"{expected[model]['wikitext2_ppl']:.2f}"
        assert row["accuracy"] == f"{expected[model]['accuracy_avg']:.1f}"


def test_its_sources_are_the_profile_s():
    rows = {names(row["key"])[0]: names(row["source"])[0] for row in table(DOCUMENT, "| key | source ")}
    assert rows == PAPER.data
