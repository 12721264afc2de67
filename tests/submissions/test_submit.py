"""``fpbench submit``: from an empty folder, by the tutorial, to a verified row, on the micro model."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fpbench.board.updates import cosine
from fpbench.cli import main
from fpbench.micro import MODEL
from fpbench.submissions.process import PROMISES
from tests.conftest import require, require_confinement
from tests.docs import test_tutorial
from tests.runs.grids import SHORT, write_tiny
from tests.submissions.hostile import NAME, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a profile of seconds."""
    require(MODEL)
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "small.toml", SHORT)
    return tmp_path


@pytest.mark.parametrize("name", ["My_Method", "x", "1st", "a-b", "../up", "a" * 41, "é", "_hidden"])
def test_a_name_that_is_none(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "new", name]) == 2
    assert "expected 2 to 40 lower-case letters" in capsys.readouterr().err
    assert not (here / "submissions").exists()


def test_a_name_that_is_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "new", "lora"]) == 2
    assert "name 'lora' is that of a method or a condition already" in capsys.readouterr().err
    assert main(["submit", "new", "mine"]) == 0
    before = (here / "submissions/mine/adapter.py").read_text()
    assert main(["submit", "new", "mine"]) == 2
    assert "submissions/mine exists" in capsys.readouterr().err
    assert (here / "submissions/mine/adapter.py").read_text() == before


@pytest.mark.parametrize("part", ["check", "run", "verify"])
def test_a_submission_that_is_not_there(part: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", part, "nobody"]) == 2
    assert "submission 'nobody' not found: expected a folder submissions/NAME" in capsys.readouterr().err


def test_a_submission_elsewhere_can_be_checked_and_not_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "elsewhere" / NAME)
    (here / "elsewhere" / NAME / "x.pkl").write_text("")
    assert main(["submit", "check", f"elsewhere/{NAME}"]) == 2
    assert "pickle: expected no pickle" in capsys.readouterr().out
    assert main(["submit", "run", f"elsewhere/{NAME}"]) == 2
    assert "runs find it by name in submissions/" in capsys.readouterr().err


def test_every_verb_refuses_what_the_check_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_confinement()
    (write(here / "submissions" / NAME) / "x.pkl").write_text("")
    commands = (["run", "--method", NAME], ["inject", "micro", "--method", NAME, "--fingerprints", "nlf", "--out", "x"])
    for command in (["submit", "run", NAME], *commands):
        assert main(command) == 2
        assert f"submission '{NAME}' is refused: pickle: expected no pickle" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["small.toml", "submissions"]


def test_nothing_to_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_confinement()
    write(here / "submissions" / NAME)
    assert main(["submit", "verify", NAME]) == 2
    assert f"holds no records of '{NAME}': its author runs `fpbench submit run` first" in capsys.readouterr().err


def test_from_the_tutorial_to_a_verified_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_tutorial.begin(capsys)
    folder = here / "submissions" / "my_method"
    said = capsys.readouterr().out
    test_tutorial.check_what_is_said(said)
    assert "mock run on micro, exact FSR in %: " in said and "the harness's own share" in said
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)

    assert main(["submit", "run", "my_method", "--profile", "small.toml", "--out", "theirs"]) == 0
    assert "my_method" in capsys.readouterr().out
    records = sorted(str(path.relative_to(folder / "records")) for path in folder.rglob("fsr.json"))
    assert records == [
        f"micro/nlf/{method}/seed-42/{condition}/fsr.json"
        for method in ("base", "my_method")
        for condition in ("nf4", "origin")
    ]

    from fpbench.records.store import read_record

    proven = read_record(folder / "records/micro/nlf/my_method/seed-42/origin/fsr.json")
    assert proven["provenance"]["confinement"]["missing"] == []
    assert set(proven["provenance"]["confinement"]["holds"]) == set(PROMISES)
    assert cosine(proven["proof"]["sketch"], proven["proof"]["sketch"]) == pytest.approx(1.0)

    # A figure is made more beautiful: the record is written anew, with a checksum, as anybody can.
    from fpbench.records.cell import Cell
    from fpbench.records.record import Record
    from fpbench.records.store import Store

    cell = Cell("micro", "nlf", "my_method", 42, "nf4", "fsr")
    path = folder / "records" / f"{cell.path}.json"
    record = read_record(path)
    queries = [json.loads(line) | {"probability": 0.5} for line in path.with_suffix(".jsonl").read_text().splitlines()]
    record["result"]["mean"] = record["result"]["lenient"]["mean"] = 0.5
    Store(folder).write(Record.from_dict(record), queries)

    verify = ["submit", "verify", "my_method", "--profile", "small.toml", "--cells", "2", "--out", "ours"]
    assert main(verify) == 1
    said = capsys.readouterr().out
    lines = {(words[4], words[5]): words for line in said.splitlines() if len(words := line.split("|")) > 8}
    verdict = {(key[0].strip(), key[1].strip()): words[-2].strip() for key, words in lines.items()}
    assert verdict["origin", "fsr"] == "within" and verdict["nf4", "fsr"] == "OUTSIDE"
    assert verdict["origin", "near"] == "shown only" and verdict["origin", "triggers"] == "shown only"
    seed = int(re.search(r"drawn with seed (\d+)", said)[1])
    for metric in ("near", "triggers"):
        ours, claimed = (
            read_record(out / "records/micro/nlf/my_method/seed-42/origin" / f"{metric}.json")
            for out in (here / "ours", folder)
        )
        assert ours["identity"].pop("draw") == seed and "draw" not in claimed["identity"]
        assert ours["identity"] == claimed["identity"]

    board = ["leaderboard", "--records", "ours/records", "--claimed", "submissions"]
    assert main(board) == 0
    assert "claimed, 5/5 cells compared, 1 of them outside" in capsys.readouterr().out
