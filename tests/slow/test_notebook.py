"""The notebook of the documents, cell after cell."""

import json

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_notebook_runs_from_the_root_of_a_checkout(monkeypatch):
    notebook = json.loads((ROOT / "docs" / "results.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["table"].loc[("micro", "mcedit_a"), "ria40"] == 98.8
    assert len(names["own"]) == 10 and "mcedit_a" in names["prices"].index.get_level_values("method")
