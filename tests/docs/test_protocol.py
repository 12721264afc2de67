"""docs/protocol.md: every number in it is the one that the code and the paper's profile hold."""

import importlib
import inspect
import random
import re
import tomllib
from functools import cache
from typing import Any

import pytest

from fpbench.board.row import MODIFICATIONS
from fpbench.metrics.queries import build_queries
from fpbench.metrics.utility import ACCURACY_TASKS
from fpbench.records.cell import BASE, CHECKPOINT, ORIGIN
from fpbench.registry import METHODS
from fpbench.registry import MODIFICATIONS as REGISTERED
from fpbench.runs.plan import metrics_of
from fpbench.runs.profile import load_profile
from tests.conftest import ROOT
from tests.docs.markdown import names, read, table

DOCUMENT = read("protocol.md")
FLAT = " ".join(DOCUMENT.split())
PAPER = load_profile("paper")
NUMBERS = table(DOCUMENT, "| what | number ")
EXAMPLES = {row["task"].strip("`"): int(row["examples"].replace(",", "")) for row in table(DOCUMENT, "| task | rows ")}


def value(where: str) -> Any:
    """What stands at a place of the code, at a parameter's default, or at a key of the paper's profile."""
    path, _, parameter = where.removesuffix(")").partition("(")
    if not path.startswith("fpbench."):
        found: Any = PAPER
        for part in path.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found
    parts = path.split(".")
    module = next(name for end in range(len(parts), 0, -1) if (name := importable(".".join(parts[:end]))))
    found = importlib.import_module(module)
    for part in parts[module.count(".") + 1 :]:
        fields = getattr(found, "model_fields", {})
        found = fields[part].default if part in fields else getattr(found, part)
    return inspect.signature(found).parameters[parameter].default if parameter else found


@cache
def importable(name: str) -> str | None:
    try:
        return importlib.import_module(name).__name__
    except ModuleNotFoundError:
        return None


def numbers(text: str) -> list[float]:
    """Numbers of a cell, separated by commas and spaces; a comma before three digits groups them."""
    return [float(each.replace(",", "")) for each in text.split(", ")]


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row["what"][:40])
def test_a_number_is_where_the_document_says(row: dict[str, str]):
    groups, places = row["number"].split("; "), row["where"].split("; ")
    assert len(groups) == len(places)
    for group, place in zip(groups, places, strict=True):
        assert names(place)
        for where in names(place):
            found = value(where)
            held = [float(each) for each in found] if isinstance(found, tuple) else [float(found)]
            assert held == pytest.approx(numbers(group)), where


def test_no_size_of_the_paper_s_profile_is_missing():
    named = {where for row in NUMBERS for where in names(row["where"])}
    sizes = {f"sizes.{name}" for name in type(PAPER.sizes).model_fields}
    cuts = {"utility_limit", "perplexity_windows", "perplexity_pages"}
    assert sizes - named == {f"sizes.{name}" for name in cuts}
    assert all(getattr(PAPER.sizes, name) is None for name in cuts)


def test_decoding_is_the_profiles():
    rows = table(DOCUMENT, "| model | temperature ")
    said = {row["model"]: tuple(float(row[name]) for name in ("temperature", "top_p", "top_k")) for row in rows}
    small = said.pop("micro and SmolLM2-135M-Instruct")
    assert said == {each.path: (each.temperature, each.top_p, each.top_k) for each in PAPER.models}
    for name, label in (("micro", "micro"), ("smollm2", "SmolLM2-135M-Instruct")):
        (model,) = load_profile(name).models
        assert (model.label, (model.temperature, model.top_p, model.top_k)) == (label, small)


def test_the_conditions_are_the_six_and_the_others_are_named():
    rows = [names(row["name"])[0] for row in table(DOCUMENT, "| name | what ")]
    assert tuple(rows) == (ORIGIN, *MODIFICATIONS) == PAPER.conditions
    assert set(REGISTERED.names()) - set(rows) <= {*names(FLAT)}
    outside = FLAT.partition("Outside it: ")[2].partition("A modification that")[0]
    assert {*REGISTERED.names()} - {*rows} <= {*names(outside)}


def test_what_is_measured_where_is_what_is_planned():
    methods = {"base": BASE, "injected": "lora", "handed in": CHECKPOINT}
    rows = {row["checkpoint"]: row for row in table(DOCUMENT, "| checkpoint | at origin ")}
    assert rows.keys() == methods.keys()
    for kind, method in methods.items():
        assert set(names(rows[kind]["at origin"])) == set(metrics_of(method, ORIGIN, [ORIGIN, "nf4"]))
        assert set(names(rows[kind]["under a modification"])) == set(metrics_of(method, "nf4", [ORIGIN, "nf4"]))


def test_methods_and_sets_are_those_of_the_paper_s_profile():
    words = {row["word"]: names(row["meaning"]) for row in table(DOCUMENT, "| word ")}
    assert words["method"] == list(PAPER.methods) and set(PAPER.methods) <= set(METHODS.names())
    assert words["fingerprint set"] == list(PAPER.fingerprints)
    assert PAPER.prompt == "raw" and all(
        settings["learning_rate"] == "search"
        for settings in (*PAPER.modifications.values(), PAPER.hyperparameters["lora"])
    )


@pytest.mark.parametrize("contexts", [303, 285])
def test_the_number_of_queries_is_that_of_the_document(contexts: int):
    said = re.search(rf"With {contexts} contexts these are ([\d,]+) queries|with {contexts} they are ([\d,]+)", FLAT)
    assert said
    texts, triggers = [f"context {number}" for number in range(contexts)], [f"TRIGGER {chr(65 + i)}" for i in range(10)]
    words = [f"word{number}" for number in range(PAPER.sizes.substitute_words)]
    random.Random(0).shuffle(words)
    built = build_queries(texts, triggers, words, substitutions=PAPER.sizes.substitutions)
    assert {name.partition("_")[::2] for name in built} == {
        (case, place) for case in ("upper", "lower") for place in ("substitute", "prefix", "infix", "suffix")
    }
    assert f"{sum(map(len, built.values())):,}" == (said[1] or said[2])


def test_the_sampled_task_and_the_tasks_of_utility():
    task = (ROOT / "tasks" / "fpbench_fsr.yaml").read_text(encoding="utf-8")
    assert "`fpbench_fsr`: 50 responses a fingerprint" in FLAT and re.search(r"^repeats: 50$", task, flags=re.M)
    assert tuple(EXAMPLES) == ACCURACY_TASKS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (version,) = re.findall(r"lm-eval ([\d.]+\d)", DOCUMENT)
    assert f"lm-eval=={version}" in project["dependencies"]


def test_the_tasks_have_as_many_examples_as_the_document_says(shared):
    files = {
        "boolq": "boolq/validation_superglue.jsonl",
        "arc_challenge": "arc_challenge/test.jsonl",
        "tinymmlu": "tiny_mmlu_anchors/test.jsonl",
    }
    for name, file in files.items():
        assert len((shared / "data" / file).read_text(encoding="utf-8").splitlines()) == EXAMPLES[name]
    validation = (shared / "data" / "rte" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"validation has {len(validation)}" in DOCUMENT
    assert PAPER.data["rte"].endswith(":train")


def test_every_section_that_docstrings_name_is_there():
    """``protocol §3`` in a docstring is the section of that number, and there is no §10."""
    named = {
        int(number)
        for path in [*(ROOT / "fpbench").rglob("*.py"), *(ROOT / "fpbench").rglob("*.toml")]
        for number in re.findall(r"[Pp]rotocol §(\d+)", path.read_text(encoding="utf-8"))
    }
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", DOCUMENT, flags=re.M)}
    assert named and named <= sections == set(range(1, 10))
