"""Submitted adversaries in a run, from the command to the record; each in child processes."""

import json
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.metrics.statistics import leniently
from fpbench.micro import MODEL
from fpbench.records.cell import Cell
from fpbench.records.record import Record
from fpbench.records.store import Store, read_record
from fpbench.submissions.folder import ADVERSARY, write_new
from tests.conftest import require, require_confinement
from tests.runs.grids import write_tiny

NAME = "my_thief"
SIZES = {"price_instructions": 4, "price_answers": 4, "perplexity_windows": 1, "perplexity_window": 64}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's folder, where a profile of seconds lies."""
    require_confinement()
    require(MODEL)
    monkeypatch.chdir(tmp_path)
    path = write_tiny(tmp_path / "small.toml", ("origin",))
    data = '[data]\nanswers = "bundled:zsre.jsonl"\nwikitext = "bundled:prose.txt"'
    sizes = "\n".join(["[sizes]", *(f"{name} = {size}" for name, size in SIZES.items())])
    path.write_text(path.read_text().replace("[data]", data).replace("[sizes]", sizes))
    return write_new(NAME, example=ADVERSARY)


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def submit(part: str, *more: str) -> int:
    return main(["submit", part, NAME, "--profile", "small.toml", "--quiet", *more])


def record(store: str, method: str, condition: str, metric: str = "fsr") -> dict:
    return read_record(Path(store) / f"records/micro/nlf/{method}/seed-42/{condition}/{metric}.json")


@pytest.mark.slow
def test_an_input_part_rewrites_and_refuses(folder: Path) -> None:
    asking = (
        "    def input(self, text):\n"
        '        """Refuse what begins with a vowel; ask the rest in two ways."""\n'
        '        return None if text[0] in "AEIOU" else [text, text.lower()] if self.amount else text\n\n'
        "    def sampler("
    )
    change(folder / "adversary.py", "    def sampler(", asking)
    change(folder / "submission.toml", 'parts = ["sampler"]', 'parts = ["input", "sampler"]')
    assert submit("run", "--method", "fpedit", "--condition", f"{NAME}@0", f"nf4+{NAME}@1", "--out", "run") == 0
    origin, nothing, attacked = (record("run", "fpedit", each) for each in ("origin", f"{NAME}@0", f"nf4+{NAME}@1"))
    refused = sum(each["text"] == "" for each in lines("run", f"{NAME}@0"))
    assert 0 < refused < 10
    assert nothing["result"]["mean"] == pytest.approx(origin["result"]["mean"] * (10 - refused) / 10, abs=0.02)
    assert attacked["result"]["mean"] < nothing["result"]["mean"] and attacked["proof"]["modification"]
    assert attacked["provenance"]["adversaries"][NAME]["authors"] == ["Your Name"]
    assert attacked["provenance"]["confinement"]["missing"] == []
    assert "confinement" not in origin["provenance"]
    assert record("run", "fpedit", f"nf4+{NAME}@1", "price")["status"] == "done"  # of its own weights


def lines(store: str, condition: str) -> list[dict]:
    path = Path(store) / f"records/micro/nlf/fpedit/seed-42/{condition}/fsr.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_sampler_that_gives_nan_is_a_failed_cell_with_its_reason(folder: Path, capsys) -> None:
    change(folder / "adversary.py", "return logits.clamp", 'return logits * float("nan") or logits.clamp')
    change(folder / "adversary.py", "or logits.clamp(max=logits.topk(2).values[1])", "")
    assert submit("run", "--method", "fpedit", "--condition", f"{NAME}@1", "--out", "run") == 1
    found = record("run", "fpedit", f"{NAME}@1")
    assert found["status"] == "failed"
    assert found["reason"] == (
        "adversary 'my_thief' returned logits that are not finite: at least one finite logit is needed, and no NaN."
    )
    assert record("run", "fpedit", "origin")["status"] == "done"
    assert submit("verify", "--out", "ours") == 1  # it fails here, too
    assert f"fpedit/seed-42/{NAME}@1/fsr: adversary 'my_thief' returned logits that" in capsys.readouterr().err


@pytest.mark.slow
def test_one_that_is_another_than_it_says_does_not_run(folder: Path) -> None:
    change(folder / "submission.toml", 'level = "L1"', 'level = "L0"')
    assert submit("run", "--method", "fpedit", "--condition", f"{NAME}@1", "--out", "run") == 1
    reason = record("run", "fpedit", f"{NAME}@1")["reason"]
    assert reason == "adversary.py is not what submission.toml says: level L1 in adversary.py, L0 in submission.toml."


@pytest.mark.slow
def test_a_figure_that_was_made_smaller_is_outside(folder: Path, capsys) -> None:
    assert submit("run", "--method", "fpedit", "--condition", f"{NAME}@1", "--out", "theirs") == 0
    cell = Cell("micro", "nlf", "fpedit", 42, f"{NAME}@1", "fsr")
    path = folder / "records" / f"{cell.path}.json"
    forged = read_record(path)
    queries = [json.loads(line) | {"probability": 0.0} for line in path.with_suffix(".jsonl").read_text().splitlines()]
    forged["result"]["mean"] = 0.0
    bound = forged["result"]["lenient"]["error_bound"]
    forged["result"]["lenient"] = leniently([0.0] * 10, [each["hidden"] for each in queries], bound)
    Store(folder).write(Record.from_dict(forged), queries)
    capsys.readouterr()
    assert submit("verify", "--out", "ours") == 1
    said = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.count("|") > 8]
    verdicts = {(line[4].strip(), line[5].strip(), line[6].strip()): line[-2].strip() for line in said}
    assert verdicts[f"{NAME}@1", "fsr", "0.00"] in ("OUTSIDE", "within")  # of the row, and of the base
    assert [line[-2].strip() for line in said].count("OUTSIDE") == 1
    assert main(["leaderboard", "--records", "ours", "--claimed", "submissions"]) == 0
    assert "removal" in capsys.readouterr().out
