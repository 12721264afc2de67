"""docs/leaderboard.md: its example is a committed row, and no column, mark or key is left unexplained."""

import html
import json
import re
from functools import reduce
from typing import Any

import pytest

from fpbench.board import checks
from fpbench.board.columns import DETECTABILITY, HARM, removal_columns
from fpbench.board.results import results
from fpbench.board.row import MODIFICATIONS
from fpbench.board.rows import rows_from_records
from fpbench.metrics.claims import FLOOR
from fpbench.modifications import prune
from fpbench.records.store import read_records
from tests.conftest import ROOT
from tests.docs.markdown import names, read, table

DOCUMENT = read("leaderboard.md")
FOLDER = ROOT / "leaderboard"
RECORDS = FOLDER / "records"
EXAMPLE = ("micro", "nlf", "mcedit_a")
# One column of the Removal table per adversary; the document explains them as one, and names each elsewhere.
# Each adversary in the table of its document, and each control named below that.
ADVERSARIES = {names(row["name"])[0] for row in table(read("adversaries.md"), "| name | level ")}
ADVERSARIES |= {name for name in names(read("adversaries.md")) if name.endswith("_random")}
LEFT = {f"FSR@10 %: {name}" for name in ADVERSARIES}
ROWS = json.loads((FOLDER / "leaderboard.json").read_text(encoding="utf-8"))["rows"]


def committed(method: str) -> dict[str, Any]:
    return next(row for row in ROWS if (row["model"], row["method"]) == ("micro", method))


def test_the_example_quotes_every_column_of_the_committed_row_as_it_is_shown():
    (row,) = (row for row in rows_from_records(read_records(RECORDS), RECORDS, rescore=False) if row.key == EXAMPLE)
    example = {each["column"]: each["figure"] for each in table(DOCUMENT, "| column | figure ")}
    shown = {column.name: column.text(row) for column in [*DETECTABILITY, *HARM]}
    assert example == {name: shown[name] for name in example}
    assert shown.keys() - example.keys() == {"model", "method", "set", "trust"}
    assert f"micro with the set `{row.fingerprints}`" in DOCUMENT


def test_the_figures_behind_the_example_are_those_of_leaderboard_json():
    row = committed("mcedit_a")
    for each in table(DOCUMENT, "| key "):
        (key,) = names(each["key"])
        value = reduce(lambda found, part: found[part], key.split("."), row)
        digits = len(each["value"].partition(".")[2])
        assert round(float(value), digits) == float(each["value"]), key


def test_every_column_of_the_tables_is_explained():
    headers = {"| column | what ": "column", "| column of Removal | what ": "column of Removal"}
    explained = " ".join(row[column] for header, column in headers.items() for row in table(DOCUMENT, header))
    removal = removal_columns(rows_from_records(read_records(RECORDS), RECORDS, rescore=False))
    assert len(removal) > 5
    for name in (column.name for column in [*DETECTABILITY, *HARM, *removal]):
        if name in MODIFICATIONS or name in LEFT:
            continue
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", explained) or f"**{name}**" in DOCUMENT, name
    assert f"{MODIFICATIONS[0]} … {MODIFICATIONS[-1]}" in explained


def test_the_columns_of_each_adversary_are_explained_as_one():
    (explained,) = (
        row for row in table(DOCUMENT, "| column of Removal ") if "FSR@10 %: ADVERSARY" in row["column of Removal"]
    )
    assert "FSR" in explained["what"] and LEFT


def test_every_average_quoted_of_micro_is_the_committed_one():
    quoted = re.findall(r"`(\w+)` \((\d+\.\d)\)", DOCUMENT.partition("**Rank.**")[2].partition("**out.**")[0])
    assert len(quoted) == 3
    averages = {row["method"]: row["avg"] for row in ROWS if row["model"] == "micro" and row["trust"] == "re-run"}
    assert [(name, f"{100 * averages[name]:.1f}") for name, _ in quoted] == quoted
    assert f"below {min(100 * avg for name, avg in averages.items() if name != 'base'):.1f}" in DOCUMENT
    assert committed("if_embedding")["rank"] == committed("alphaedit")["rank"] == 1 < committed("mcedit_r")["rank"]


def test_every_entry_of_the_page_is_explained():
    page = (FOLDER / "leaderboard.html").read_text(encoding="utf-8")
    entries = {html.unescape(found) for found in re.findall(r"<(?:th scope=\"col\"[^>]*|dt)>([^<]+)<", page)}
    assert len(entries) > 50
    known = {*MODIFICATIONS, *LEFT}
    missing = [each for each in entries - known if not re.search(rf"(?<!\w){re.escape(each)}(?!\w)", DOCUMENT)]
    assert not missing
    captions = set(re.findall(r"<(?:caption|h5)>([^<]+)<", page))
    parts = {row["part"] for row in table(DOCUMENT, "| part ")}
    assert parts == {html.unescape(each) for each in captions}


def test_every_key_of_the_json_is_named():
    spans = set(names(DOCUMENT))
    assert {key for row in ROWS for key in row} <= spans


def test_every_metric_of_the_long_form_is_named_and_the_example_of_pandas_runs(capsys):
    frame = results(RECORDS).to_pandas()
    spans = set(names(DOCUMENT))
    kinds = ("accuracy_", "triggers_", "bands_")  # one of each is named, with dots after it
    assert {each for each in frame.metric if not each.startswith(kinds)} <= spans
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.S)
    exec(example.replace("leaderboard/records", str(RECORDS)), {})
    assert "mcedit_a" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trust", sorted({row["trust"] for row in ROWS} | {"reported", "claimed", "re-scored", "re-run"})
)
def test_every_trust_is_explained(trust: str):
    assert trust in {row["trust"] for row in table(DOCUMENT, "| trust ")}


def test_what_is_refused_is_named_with_its_limits():
    refused = DOCUMENT.partition("A record is refused")[2]
    assert f"above {checks.ERROR_BOUND:.0e}".replace("e-0", "e-") in refused
    assert f"more than {prune.OFF_TARGET:g} away" in refused
    for each in (prune.RIA30, prune.RIA40):
        assert f"{each.sparsity:g} (`{each.name}`)" in refused
    assert f"at least {FLOOR}" in DOCUMENT
