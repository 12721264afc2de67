"""Hostile records: in a submission they cost it its row and nobody else anything; in one's own store, a measurement."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fpbench.cli import main
from fpbench.records.cell import Cell
from fpbench.records.record import cell_id
from fpbench.records.store import UNKNOWN, Store
from fpbench.text import digest
from tests.board.written import MODIFIED, cost, fsr, grid, near, triggers, utility, write

Change = Callable[[Store], object]
CELL = Cell("tiny", "nlf", "stranger", 42, "int8", "fsr")


def forge(path: Path, text: str) -> None:
    """Write the text of a record with its checksum, as anybody can."""
    path.write_text(text.replace(UNKNOWN, digest(text), 1))


def edited(change: Callable[[dict], object], at: Cell = CELL) -> Change:
    def do(store: Store) -> None:
        path = store.record_path(at)
        content = json.loads(path.read_text())
        change(content)
        if "checksum" in content:
            content["checksum"] = UNKNOWN
        forge(path, json.dumps(content, ensure_ascii=True))

    return do


def number(text: str) -> Change:
    """A record whose FSR is this text."""

    def do(store: Store) -> None:
        path = store.record_path(CELL)
        content = json.loads(path.read_text())
        content["result"]["mean"] = "HERE"
        forge(path, json.dumps(content | {"checksum": UNKNOWN}).replace('"HERE"', text))

    return do


def raw(content: bytes, suffix: str = ".json") -> Change:
    return lambda store: store.record_path(CELL).with_suffix(suffix).write_bytes(content)


def identity(**change: object) -> Change:
    def do(content: dict) -> None:
        content["identity"] |= change
        content["id"] = cell_id(content["identity"])

    return edited(do)


def copied(*place: str) -> Change:
    """A copy of a record and its queries under another folder."""

    def do(store: Store) -> None:
        folder = store.record_path(CELL).parent
        shutil.copytree(folder, store.records.joinpath(*place, folder.name))

    return do


def replaced(make: Callable[[Path], object], suffix: str = ".json") -> Change:
    def do(store: Store) -> None:
        path = store.record_path(CELL).with_suffix(suffix)
        path.unlink()
        make(path)

    return do


def elsewhere(path: Path) -> None:
    target = Path("elsewhere")
    target.write_text("{}")
    path.symlink_to(target.absolute())


def query(**change: object) -> Change:
    """A record whose queries are other ones, with their digest."""

    def do(store: Store) -> None:
        path = store.record_path(CELL)
        lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
        content = json.loads(path.read_text()) | {"checksum": UNKNOWN}
        text = "".join(json.dumps(each | change) + "\n" for each in lines)
        path.with_suffix(".jsonl").write_text(text)
        content["queries"]["sha256"] = digest(text)
        forge(path, json.dumps(content))

    return do


def lines(content: dict) -> None:
    content["queries"]["count"] = 11


# Name: what is done to a sound submission, and what the line says. Those of FAST run in CI.
HOSTILE: dict[str, tuple[Change, str]] = {
    "not a number": (number("NaN"), "not finite, nan"),
    "infinity": (number("1e999"), "not finite, inf"),
    "10**400": (number("1" + "0" * 400), "a whole number of more than 64 bits"),
    "10**5000": (number("1" + "0" * 5000), "cannot be read"),
    "no protocol": (edited(lambda content: content.pop("protocol")), "protocol: Field required"),
    "100,000 brackets": (raw(b"[" * 100_000), "levels of brackets"),
    "100,000 brackets in a record": (number("[" * 100_000 + "]" * 100_000), "levels of brackets"),
    "100 levels": (number("[" * 100 + "]" * 100), "levels of brackets"),
    "seed-042": (copied("tiny", "nlf", "stranger", "seed-042"), "not at the place of a cell"),
    "a copy under another folder": (copied("tiny", "nlf", "stranger", "seed-43"), "another cell than its place"),
    "a copy below": (copied("backup", "tiny", "nlf", "stranger", "seed-42"), "not at the place of a cell"),
    "another identity": (identity(condition="origin"), "the identity of another cell (condition)"),
    "another seed": (identity(seed=43), "the identity of another cell (seed)"),
    "another method": (identity(method="lora"), "its identity is of method 'lora'"),
    "another id": (edited(lambda content: content.update(id="0" * 16)), "an id that is not that of its identity"),
    "no identity": (edited(lambda content: content.pop("identity")), "a result without identity"),
    "an extra key": (edited(lambda content: content.update(rank=1)), "rank: Unexpected keyword argument"),
    "an extra figure": (edited(lambda content: content["result"].update(rank=1)), "fsr with a figure 'rank'"),
    "a seed of text": (edited(lambda content: content["cell"].update(seed="42")), "cell.seed"),
    "failed without a reason": (
        edited(lambda content: content.update(status="failed")),
        "failed without reason",
    ),
    "half a character": (edited(lambda content: content["provenance"].update(git="\ud800")), "surrogates"),
    "no JSON": (raw(b"{"), "cannot be read"),
    "no text": (raw(b"\xff\xfe"), "cannot be read"),
    "a list": (raw(b"[]"), "is no JSON object"),
    "nothing": (raw(b""), "cannot be read"),
    "17 MiB": (raw(b" " * (17 * 2**20)), "at most 16777216 bytes"),
    "a folder": (replaced(lambda path: path.mkdir()), "cannot be read (no file)"),
    "a link": (replaced(elsewhere), "found a link, pipe or device"),
    "a pipe": (replaced(os.mkfifo), "found a link, pipe or device"),
    "a pipe of queries": (replaced(os.mkfifo, ".jsonl"), "found a link, pipe or device"),
    "no queries": (replaced(lambda path: None, ".jsonl"), "per-query results that are missing"),
    "a query too few": (edited(lines), "per-query results as 11 JSON objects"),
    "queries of text": (query(probability="1"), "probability of a fingerprint 1 is outside"),
    "queries of True": (query(probability=True), "probability of a fingerprint True is outside"),
    "greedy of 5": (query(greedy=5), "greedy of a query is neither true nor false"),
    "a protocol of its own": (lambda s: fsr(s, "stranger", "int8", [1.0], protocol=9), "of protocol 9"),
    "fsr": (lambda s: fsr(s, "stranger", "int8", [0.5] * 10, {"mean": 1.0}), "is not the mean of its queries"),
    "near": (lambda s: near(s, "stranger", [0.9] * 10, 0, {"rate": 0.0}), "rate 0.0 is not that of its queries, 0.9"),
    "triggers": (lambda s: triggers(s, "stranger", [0.9] * 4, {"average": 0.0}), "average 0.0 is not that of its q"),
    "activated": (lambda s: triggers(s, "stranger", [0.9] * 4, {"activated": 0}), "activated triggers 0 is not that"),
    "accuracy": (lambda s: utility(s, "stranger", [False] * 10, 9.0, {"accuracy": 1.0}), "accuracy 1.0 is not that"),
    "perplexity": (
        lambda s: utility(s, "stranger", [True] * 10, 9.0, {"token_perplexity": {"perplexity": 1.0, "length": 512}}),
        "token perplexity 1.0 is not that of its queries, 9.0",
    ),
    "cost below zero": (lambda s: cost(s, "stranger", {"bytes": -1}), "bytes -1 is outside [0, inf]"),
    "seconds below zero": (lambda s: cost(s, "stranger", {"seconds": {"total": -1.0}}), "seconds of total -1.0 is"),
    "measured before it began": (lambda s: fsr(s, "stranger", "int8", [1.0] * 10, cost={"seconds": -1}), "cost: seco"),
    "a metric of its own": (lambda s: write(s, "stranger", "origin", "rank", {"x": 1}), "metric 'rank' is not known"),
    "a modification of its own": (lambda s: fsr(s, "stranger", "mine", [1.0] * 10), "modification 'mine' is not known"),
    "a long reason": (lambda s: write(s, "stranger", "merge", "fsr", reason="x" * 9_999), "a reason of at most 2000"),
    "5,001 files": (
        lambda s: [(s.records / str(number)).touch() for number in range(5_001)],
        "at most 5000 files",
    ),
}
FAST = (
    "not a number",
    "10**400",
    "no protocol",
    "100,000 brackets",
    "seed-042",
    "a copy below",
    "another identity",
    "a folder",
    "a pipe",
    "near",
    "triggers",
    "cost below zero",
    "a metric of its own",
)
CASES = [pytest.param(*case, id=name, marks=() if name in FAST else pytest.mark.slow) for name, case in HOSTILE.items()]
# Damage of one file, which a run finds by itself.
OWN = [
    pytest.param(HOSTILE[name][0], id=name, marks=() if name in FAST else pytest.mark.slow)
    for name in list(HOSTILE)[: list(HOSTILE).index("no queries") + 1]
    if not name.startswith(("a copy", "seed-", "another method", "an extra figure", "a pipe of"))
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def strangers(folder: str = "stranger") -> Store:
    store = Store(Path("submissions") / folder)
    for condition in ("origin", *MODIFIED):
        fsr(store, folder, condition, [1.0] * 10)
    return store


def board(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Trust of every row of ours and of submissions, by method."""
    assert main(["leaderboard", "--records", "own/records", "--claimed", "submissions", "--format", "json"]) == 0
    return {
        row["method"]: row["trust"] for row in json.loads(capsys.readouterr().out)["rows"] if row["model"] == "tiny"
    }


def refused(caplog: pytest.LogCaptureFixture, said: str) -> None:
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("submission ") and said in line and "\n" not in line and len(line) < 1_200


@pytest.mark.parametrize(("change", "said"), CASES)
def test_a_bad_submission_is_named_and_left_out(capsys, caplog, change: Change, said: str) -> None:
    grid(Path("own"))
    strangers("honest")
    store = strangers()
    ours = {"base": "re-run", "strong": "re-run", "weak": "re-run", "honest": "claimed"}
    assert board(capsys) == ours | {"stranger": "claimed"}
    change(store)
    assert board(capsys) == ours
    refused(caplog, said)


@pytest.mark.parametrize("name", ["lora", "base", "checkpoint"])
def test_names_that_are_taken_are_left_out(capsys, caplog, name: str) -> None:
    grid(Path("own"))
    strangers(name)
    assert board(capsys) == {"base": "re-run", "strong": "re-run", "weak": "re-run"}
    refused(caplog, "is taken")


@pytest.mark.parametrize("place", ["", "records"])
def test_a_linked_folder_is_left_out(capsys, caplog, place: str) -> None:
    grid(Path("own"))
    strangers()
    folder = Path("submissions/stranger") / place
    folder.rename("moved")
    folder.symlink_to(Path("moved").absolute())
    assert "stranger" not in board(capsys)
    refused(caplog, "found a link")


@pytest.mark.parametrize("change", OWN)
def test_in_ones_own_store_it_is_set_aside_and_measured_again(caplog, capsys, change: Change) -> None:
    store = grid(Path("own"))
    fsr(store, "stranger", "int8", [1.0] * 10)
    path = store.record_path(CELL)
    name = json.loads(path.read_text())["id"]
    assert store.find(CELL, name)
    change(store)
    assert main(["leaderboard", "--records", "own/records"]) == 0  # shows it as failed
    assert "run again" in capsys.readouterr().out
    caplog.clear()
    assert store.find(CELL, name) is None
    assert len(caplog.records) == 1 and path.name in caplog.text and caplog.text.count("\n") == 1
    fsr(store, "stranger", "int8", [1.0] * 10)
    assert store.find(CELL, name) and path.with_name(f"{path.name}.damaged").exists()
    assert main(["leaderboard", "--records", "own/records"]) == 0
    assert "run again" not in capsys.readouterr().out
