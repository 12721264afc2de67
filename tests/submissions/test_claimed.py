"""Claimed rows: shown as such, without a rank, beside what was measured here."""

import json
import shutil
from pathlib import Path

import pytest

from fpbench.board.checks import ALLOWED, ALLOWED_AFTER_TRAINING
from fpbench.cli import main
from fpbench.records.store import Store
from tests.board.written import MODIFIED, fsr, grid, harmless, near, utility, write


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Our own records: base, strong, weak."""
    monkeypatch.chdir(tmp_path)
    return grid(tmp_path / "own")


@pytest.fixture
def theirs() -> Store:
    """A submitter's: perfect everywhere, with a base of theirs."""
    store = Store(Path("submissions/stranger"))
    for condition in ("origin", *MODIFIED):
        fsr(store, "base", condition, [0.0] * 10)
        fsr(store, "stranger", condition, [1.0] * 10)
    near(store, "stranger", [0.01] * 10)
    return store


def board(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["leaderboard", "--records", "own/records", "--claimed", "submissions", "--format", kind]) == 0
    return capsys.readouterr().out


def row(capsys: pytest.CaptureFixture[str], method: str = "stranger") -> dict:
    (found,) = [
        row
        for row in json.loads(board("json", capsys))["rows"]
        if row["method"] == method and row["trust"] != "reported"
    ]
    return found


def test_without_the_option_nothing_is_claimed(own, theirs, capsys) -> None:
    assert main(["leaderboard", "--records", "own/records"]) == 0
    assert "stranger" not in capsys.readouterr().out


def test_a_claimed_row_has_no_rank(own, theirs, capsys) -> None:
    found = row(capsys)
    assert (found["trust"], found["rank"], found["avg"], found["checked"]) == ("claimed", None, 1.0, None)
    assert found["out"] == "claimed" and "| out: claimed |" in " ".join(board("md", capsys).split())
    assert row(capsys, "strong")["rank"] == 1 and row(capsys, "strong")["trust"] == "re-run"
    assert "| claimed |" in " ".join(board("md", capsys).split())


def test_a_base_judges_only_rows_of_its_own_origin(own, theirs, capsys) -> None:
    fsr(own, "base", "origin", [0.5] * 10)
    assert row(capsys)["claim"]["largest_null"] == 0.0, "a claimed row is held against its own submission's base"
    assert row(capsys, "strong")["claim"]["largest_null"] == 5.0, "and ours against ours"
    assert row(capsys, "base")["trust"] == "re-run", "theirs is not shown beside ours"


def test_a_stranger_s_base_judges_none_of_our_rows(own, theirs, capsys) -> None:
    """It had turned a re-run row from +18 to +1,046 % of perplexity, and its claim to "impossible"."""
    shutil.rmtree("own/records/tiny/nlf/base")
    fsr(theirs, "base", "origin", [1.0] * 10)
    utility(theirs, "base", [True] * 10, 1.0)
    found = row(capsys, "strong")
    assert (found["utility"].get("difference"), found["claim"], found["rank"]) == (None, None, None)
    assert found["out"] == "accuracy not compared with a base, perplexity not compared with a base"


def test_a_stranger_s_base_judges_no_other_stranger_s_row(own, theirs, capsys) -> None:
    fsr(theirs, "base", "origin", [1.0] * 10)
    other = Store(Path("submissions/another"))
    for name, p in (("base", 0.0), ("another", 1.0)):
        fsr(other, name, "origin", [p] * 10)
    lone = Store(Path("submissions/lone"))
    fsr(lone, "lone", "origin", [1.0] * 10)
    for mine in (True, False):  # with a base of ours, and without
        assert row(capsys)["claim"]["threshold"] is None
        assert row(capsys, "another")["claim"]["largest_null"] == 0.0
        assert row(capsys, "lone")["claim"] is None
        if mine:
            shutil.rmtree("own/records/tiny/nlf/base")


@pytest.mark.parametrize(
    ("condition", "rate", "outside"),
    [
        ("ria40", 1.0, 0),
        ("ria40", 1 - ALLOWED + 1e-9, 0),
        ("ria40", 1 - ALLOWED - 1e-9, 1),
        ("finetune_alpaca", 1 - ALLOWED_AFTER_TRAINING + 1e-9, 0),
        ("finetune_math", 1 - ALLOWED_AFTER_TRAINING - 1e-9, 1),
    ],
)
def test_a_re_run_within_what_is_allowed(own, theirs, capsys, condition: str, rate: float, outside: int) -> None:
    fsr(own, "stranger", condition, [rate] * 10, cost={"seconds": 1.0})
    found = row(capsys)
    assert (found["trust"], found["rank"]) == ("claimed", None)
    assert found["checked"]["outside"] == outside and found["checked"]["of"] == 8
    (both,) = found["checked"]["compared"]
    assert (both["condition"], both["claimed"], both["rerun"]) == (condition, 1.0, pytest.approx(rate))


def test_outside_both_numbers_are_shown(own, theirs, capsys) -> None:
    fsr(own, "stranger", "ria40", [0.6] * 10)
    text = board("md", capsys)
    assert "100.0 [69.2, 100.0] (re-run: 60.0)" in text
    assert "claimed, 1/8 cells compared, 1 of them outside" in text
    assert "- tiny · nlf · stranger · ria40 · fsr: claimed 100.0 %, re-run 60.0 % (2 points allowed, OUTSIDE)" in text
    page = board("html", capsys)
    assert 'id="checked"' in page and "re-run 60.0 % (2 points allowed, OUTSIDE)" in page
    lines = board("latex", capsys)
    assert r"stranger\textsuperscript{\ddag} & 100.0 &" in lines, "a claim is never the best of a column"
    assert r"stranger, ria40: claimed 100.0 \%, re-run 60.0 \%" in lines


def test_a_cell_that_fails_here_is_outside(own, theirs, capsys) -> None:
    write(own, "stranger", "nf4", "fsr", reason="the adapter took longer than 5 s")
    assert row(capsys)["checked"]["outside"] == 1
    assert "(re-run: failed)" in board("md", capsys)


def test_near_triggers_are_shown_and_not_judged(own, theirs, capsys) -> None:
    near(own, "stranger", [0.9] * 10, 9)
    assert row(capsys)["checked"]["outside"] == 0
    assert "near: claimed 1.0 %, re-run 90.0 % (drawn anew, shown only)" in board("md", capsys)


def test_a_row_that_was_measured_here_as_a_whole_is_re_run_and_ranked(own, theirs, capsys) -> None:
    for condition in ("origin", *MODIFIED):
        fsr(own, "stranger", condition, [0.7] * 10)
    near(own, "stranger", [0.0] * 10)
    found = row(capsys)
    assert (found["trust"], found["avg"], found["rank"]) == ("re-run", pytest.approx(0.7), None)
    missing = ("accuracy", "perplexity", "triggers", "recombined")
    assert found["out"] == ", ".join(f"{figure} not measured" for figure in missing)
    harmless(own, "stranger")
    found = row(capsys)
    assert (found["rank"], found["out"]) == (2, None)
    assert found["checked"]["outside"] == 7
    assert "(re-run:" not in board("md", capsys)


def left_out(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that says why the submission is left out, beside a board that has our rows all the same."""
    caplog.clear()
    rows = json.loads(board("json", capsys))["rows"]
    assert not [row for row in rows if row["method"] == "stranger"]
    assert [row["rank"] for row in rows if row["method"] == "strong" and row["model"] == "tiny"] == [1]
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith("submission stranger is left out of the board: ") and "\n" not in said
    return said


def test_records_of_other_methods_cannot_be_handed_in(own, theirs, capsys, caplog) -> None:
    fsr(theirs, "lora", "origin", [0.0] * 10)
    assert "records of method 'lora' in submissions/stranger/records: expected only" in left_out(caplog, capsys)


def test_a_claimed_figure_that_cannot_be_is_refused_by_name(own, theirs, capsys, caplog) -> None:
    fsr(theirs, "stranger", "int8", [0.5] * 10, {"mean": 1.0})
    assert "record tiny/nlf/stranger/seed-42/int8/fsr: fsr 1.0 is not the mean" in left_out(caplog, capsys)


def test_no_folder_of_submissions(own, capsys) -> None:
    assert main(["leaderboard", "--records", "own/records", "--claimed", "nowhere"]) == 2
    assert "submissions folder nowhere does not exist" in capsys.readouterr().err


def test_a_copy_of_a_record_confirms_nothing(own, theirs, capsys) -> None:
    """On the submitter's own machine the records that are handed in are those of the run."""
    shutil.copytree("submissions/stranger/records/tiny/nlf/stranger", "own/records/tiny/nlf/stranger")
    found = row(capsys)
    assert (found["trust"], found["checked"]["compared"]) == ("re-run", [])
    assert "cells compared" not in board("md", capsys)


def test_where_we_have_no_base_theirs_is_shown(own, theirs, capsys) -> None:
    shutil.rmtree("own/records/tiny/nlf/base")
    assert row(capsys, "base")["trust"] == "claimed"
    assert row(capsys)["claim"] is not None


@pytest.mark.parametrize("change", [{"provenance": "me"}, {"provenance": None}, {"proof": 3}, {"cost": []}])
def test_records_of_another_make_are_refused_by_name(own, theirs, capsys, caplog, change) -> None:
    fsr(theirs, "stranger", "int8", [1.0] * 10, **change)
    assert "stranger" in left_out(caplog, capsys)


@pytest.mark.parametrize("change", [{"result": {"mean": 1.0}}, {"result": None}, {"proof": {"modification": 3}}])
def test_what_says_the_same_is_shown(own, theirs, capsys, change) -> None:
    fsr(theirs, "stranger", "int8", [1.0] * 10, **change)
    assert row(capsys)["trust"] == "claimed"
