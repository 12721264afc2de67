"""Figures from the committed records: every kind is drawn, and drawn the same again."""

import subprocess
import sys

import pytest

from fpbench.board.figures import _look, figures
from fpbench.board.records import group_records
from fpbench.board.rows import rows_from_records
from fpbench.cli import main
from fpbench.runs.store import read_records
from tests.conftest import ROOT

RECORDS = ROOT / "leaderboard" / "records"


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return dict(draw())


def draw():
    records = read_records(RECORDS)
    return figures(rows_from_records(records, RECORDS, rescore=False), group_records(records, RECORDS))


def test_every_kind_is_drawn_as_svg_and_png(drawn: dict[str, bytes]) -> None:
    kinds = {name.split("-")[0] for name in drawn}
    assert kinds == {"retention", "utility", "candidates", "perplexity"}
    assert all(content.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG") for name, content in drawn.items())
    assert {name.rpartition(".")[0] for name in drawn if name.endswith("svg")} == {
        name.rpartition(".")[0] for name in drawn if name.endswith("png")
    }


def test_the_methods_and_conditions_are_named(drawn: dict[str, bytes]) -> None:
    (retention,) = (
        content.decode() for name, content in drawn.items() if name.startswith("retention") and "svg" in name
    )
    # matplotlib writes each text as a comment beside its outlines
    assert all(word in retention for word in ("mcedit_a", "rledit", "ria40", "FSR, % of origin"))
    assert "base" not in retention


def test_the_same_records_give_the_same_bytes(drawn: dict[str, bytes]) -> None:
    assert dict(draw()) == drawn


def test_nothing_in_a_figure_tells_when_it_was_drawn(drawn: dict[str, bytes]) -> None:
    for name, content in drawn.items():
        assert b"dc:date" not in content and b"tIME" not in content and b"Creation Time" not in content, name


def test_the_committed_figures_name_what_the_records_hold(drawn: dict[str, bytes]) -> None:
    assert {path.name for path in (ROOT / "leaderboard" / "plots").iterdir()} == drawn.keys()


def test_many_rows_look_different() -> None:
    assert len({tuple(_look(index).values()) for index in range(42)}) == 42


def test_figures_are_written_beside_a_table(tmp_path, capsys) -> None:
    plots = tmp_path / "plots"
    assert main(["leaderboard", "--records", str(RECORDS), "--plots", str(plots)]) == 0
    assert "Leaderboard" in capsys.readouterr().out and len(list(plots.iterdir())) >= 8


def test_without_matplotlib_one_line_says_so(tmp_path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from fpbench.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "leaderboard", "--records", str(RECORDS), "--plots", str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'fpbench[plots]'" in done.stderr
    assert not (tmp_path / "p").exists()
