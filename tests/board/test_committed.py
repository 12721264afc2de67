"""The committed tables are those that the committed records give."""

from fpbench.board.rows import rows_from_records
from fpbench.board.tables import render
from fpbench.runs.store import read_records
from tests.conftest import ROOT

FOLDER = ROOT / "leaderboard"


def test_committed_records_give_the_committed_tables_byte_for_byte():
    records = read_records(FOLDER / "records")
    assert records
    rows = rows_from_records(records, FOLDER / "records", rescore=False)
    for kind in ("md", "csv", "json"):
        assert (FOLDER / f"leaderboard.{kind}").read_text(encoding="utf-8") == render(rows, kind)


def test_committed_records_come_from_no_particular_machine():
    for path in (FOLDER / "records").rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if place in text], path
