"""The adapter's own tests; `pytest` in this folder runs them."""

import tomllib
from pathlib import Path

import adapter

import fpbench
from fpbench.contract import check
from fpbench.methods.base import InjectionContext

# Those of submission.toml that hold on the bundled model.
TABLES = tomllib.loads(Path(__file__).with_name("submission.toml").read_text(encoding="utf-8"))["hyperparameters"]
VALUES = TABLES.get("all", {}) | TABLES.get("small", {})


def test_it_keeps_the_contract():
    """Every promise, on the bundled model."""
    assert [str(finding) for finding in check("chain_hash", VALUES) if not finding.passed] == []


def test_every_answer_depends_on_every_question():
    """One other question changes the answers to all of them, but for chance."""
    method = adapter.ChainHash()
    drawn = method.draw_set(None, None, 100, InjectionContext())
    questions, answers = [each.trigger for each in drawn], [each.primary for each in drawn]
    assert drawn == method.draw_set(None, None, 100, InjectionContext())
    assert answers == adapter.chain(questions)
    other = adapter.chain([*questions[:-1], "Is it so?"])
    assert sum(one == two for one, two in zip(answers[:-1], other[:-1], strict=True)) <= 4  # of 99, each with p = 1/256
    assert len(set(answers)) > 60
    assert isinstance(drawn[0], fpbench.Fingerprint)
