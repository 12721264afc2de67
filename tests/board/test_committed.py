"""The committed leaderboard is what the committed records give, byte for byte."""

import re

import pytest

from fpbench.board.leaderboard import table_files
from fpbench.cli import main
from tests.conftest import ROOT

FOLDER = ROOT / "leaderboard"
RECORDS = ["--records", str(FOLDER / "records"), "--claimed", str(ROOT / "submissions")]


def without_figures(page: str) -> str:
    """Return the page as it is written without ``--plots``."""
    return re.sub(r"<figure.*?</figure>\n", "", page, flags=re.S)


def test_committed_records_give_the_committed_files_byte_for_byte(tmp_path, capsys):
    assert main(["leaderboard", *RECORDS, "--out", str(tmp_path)]) == 0
    for kind, path in table_files(FOLDER).items():
        committed, made = path.read_text(encoding="utf-8"), (tmp_path / path.name).read_text(encoding="utf-8")
        assert made == (without_figures(committed) if kind == "html" else committed), path.name
    assert capsys.readouterr().out == (FOLDER / "leaderboard.md").read_text(encoding="utf-8")


def test_the_committed_page_shows_its_figures():
    page = (FOLDER / "leaderboard.html").read_text(encoding="utf-8")
    assert page.count("<figure") == page.count("<svg ") > 0


@pytest.mark.parametrize("kind", ["html", "latex"])
def test_the_printed_format_is_the_written_file(kind, capsys):
    assert main(["leaderboard", *RECORDS, "--format", kind]) == 0
    committed = table_files(FOLDER)[kind].read_text(encoding="utf-8")
    assert capsys.readouterr().out == without_figures(committed)


def test_committed_records_come_from_no_particular_machine():
    for path in [*(FOLDER / "records").rglob("*.json*"), *table_files(FOLDER).values()]:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if place in text], path
