"""The adapter's own test; `pytest` in this folder runs it."""

import tomllib
from pathlib import Path

import adapter  # noqa: F401 - registers the method

from fpbench.contract import check

# Those of submission.toml that hold on the bundled model.
TABLES = tomllib.loads(Path(__file__).with_name("submission.toml").read_text(encoding="utf-8"))["hyperparameters"]
VALUES = TABLES.get("all", {}) | TABLES.get("small", {})


def test_it_keeps_the_contract():
    """Every promise, on the bundled model."""
    assert [str(finding) for finding in check("merge_print", VALUES) if not finding.passed] == []
