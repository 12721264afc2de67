"""A contested method is shown as unreliable, with the reason, in every format."""

import csv
import io
import json

import pytest

from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render, summary
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.records.store import read_records
from tests.board.written import grid

REASON = "answers came from a lookup table"


@pytest.fixture
def store(tmp_path):
    store = grid(tmp_path)
    (store.records / "contested.toml").write_text(f'strong = "{REASON}"\n')
    return store


def rows_of(store):
    return rows_from_records(read_records(store.records), store.records, rescore=False)


def test_only_its_measured_rows_are_unreliable(store):
    found = {row.method: row.unreliable for row in rows_of(store) if row.trust != "reported"}
    assert found == {"base": None, "strong": REASON, "weak": None}


def test_every_format_shows_the_flag_and_the_reason(store):
    rows = rows_of(store)
    for kind in ("md", "wide", "json", "html", "latex"):
        text = render(rows, kind)
        assert "unreliable" in text and REASON in text, kind
    assert f"- strong: {REASON}" in render(rows, "md") and f"- strong: {REASON}" in summary(rows)
    by_method = {line["method"]: line for line in csv.DictReader(io.StringIO(render(rows, "wide")))}
    assert by_method["strong"]["trust"] == "re-run, unreliable" and by_method["strong"]["unreliable"] == REASON
    assert by_method["weak"]["unreliable"] == "–"
    assert [row["unreliable"] for row in json.loads(render(rows, "json"))["rows"]].count(REASON) == 1


def test_without_the_file_nothing_is_unreliable(store):
    (store.records / "contested.toml").unlink()
    assert not any(row.unreliable for row in rows_of(store))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("strong = ", "is not a readable TOML file"),
        ("strong = 3", "key 'strong': expected a reason"),
        ('strong = " "', "key 'strong': expected a reason"),
        ('[strong]\nreason = "x"', "key 'strong': expected a reason"),
        ('storng = "typed wrong"', "contests method 'storng', of which there is no record"),
    ],
)
def test_a_malformed_file_is_refused(store, text, what, capsys):
    (store.records / "contested.toml").write_text(text)
    with pytest.raises(InputError, match=what):
        rows_of(store)
    assert main(["leaderboard", "--records", str(store.records)]) == 2
    assert "contested.toml" in capsys.readouterr().err
