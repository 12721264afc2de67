"""Fetching what a profile names from a hub on this machine: pinned by the first fetch, each later one held to it."""

import io
import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fpbench import data
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.download import HubSource
from fpbench.micro import DATA, MODEL
from fpbench.models.checkpoints import resolve
from fpbench.runs.fetch import fetch_model, fetch_rows
from tests.conftest import ROOT
from tests.hub.server import Hub, environment, files_of, running

SOURCE = HubSource("acme/rows", None, "main", "train")
ROWS = b'{"text": "caf\xc3\xa9 \xe2\x80\xa8 x", "n": [1, {"b": null, "a": 0.1}]}\n{"text": "two", "n": []}\n'
PROFILE = """
methods = []
fingerprints = ["nlf"]
conditions = ["origin"]

[[models]]
path = "acme/tiny"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "hub:acme/alpaca@main:train"
boolq = "bundled:boolq.jsonl"
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "own.toml"
    path.write_text(PROFILE)
    return str(path)


def push(hub: Hub, *, gated: bool = False) -> tuple[str, str]:
    """The bundled model and rows as repositories; returns their commits."""
    rows = {"train.jsonl": (DATA / "alpaca.jsonl").read_bytes()}
    return hub.push("acme/tiny", files_of(MODEL), gated=gated), hub.push("datasets/acme/alpaca", rows)


def test_a_model_is_fetched_once_and_kept_to_its_commit(hub: Hub) -> None:
    commit = hub.push("acme/tiny", files_of(MODEL))
    fetched = fetch_model("acme/tiny", None)
    assert fetched.commit == commit and fetched.size == sum(
        len(content) for name, content in files_of(MODEL).items() if name != "README.md"
    )
    (pin,) = lock.pins().values()
    assert pin.commit == commit and pin.files["config.json"] == lock.sha256(MODEL / "config.json")
    hub.push("acme/tiny", {"config.json": b"{}"})
    hub.asked.clear()
    assert fetch_model("acme/tiny", None) == fetched and fetch_model("acme/tiny", "main") == fetched
    assert resolve("acme/tiny").name == commit and hub.asked == []


def test_the_verb_takes_a_model(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    commit = hub.push("acme/tiny", files_of(MODEL))
    assert main(["fetch", "acme/tiny"]) == 0
    assert capsys.readouterr().out.startswith(f"model acme/tiny@main → {commit}, ")
    assert main(["fetch", "acme/none"]) == 2
    assert capsys.readouterr().err.startswith("fpbench: ")


def test_rows_are_fetched_once_and_kept_to_their_commit(hub: Hub) -> None:
    commit = hub.push("datasets/acme/rows", {"train.jsonl": ROWS})
    before, read = data.digest(str(SOURCE)), data.read_rows(str(SOURCE))
    fetched = fetch_rows(SOURCE)
    assert fetched.commit == commit
    path = lock.rows_file(str(SOURCE))
    hub.push("datasets/acme/rows", {"train.jsonl": b'{"text": "new"}\n'})
    hub.asked.clear()
    assert fetch_rows(SOURCE) == fetched and fetched.size == path.stat().st_size
    assert data.read_rows(str(SOURCE)) == read == [json.loads(line) for line in ROWS.decode().split("\n") if line]
    assert data.digest(str(SOURCE)) == lock.sha256(path) != before
    assert hub.asked == []


def test_missing_rows_come_from_the_pinned_commit_and_must_match(hub: Hub) -> None:
    first = hub.push("datasets/acme/rows", {"train.jsonl": ROWS})
    fetched = fetch_rows(SOURCE)
    second = hub.push("datasets/acme/rows", {"train.jsonl": b'{"text": "new"}\n'})
    path = lock.rows_file(str(SOURCE))
    path.unlink()
    with pytest.raises(InputError, match="as it was fetched, found: No such file .* run `fpbench fetch` again"):
        data.read_rows(str(SOURCE))
    assert fetch_rows(SOURCE) == fetched
    # The same pin for another commit: what is downloaded is not what was first fetched.
    path.unlink()
    content = lock.lock_file().read_text().replace(first, second)
    lock.lock_file().write_text(content)
    with pytest.raises(InputError, match="expected the rows that were first fetched .* delete the entry in"):
        fetch_rows(SOURCE)
    assert lock.lock_file().read_text() == content and not path.exists()


def test_a_changed_copy_is_refused(hub: Hub) -> None:
    hub.push("datasets/acme/rows", {"train.jsonl": ROWS})
    fetch_rows(SOURCE)
    path = lock.rows_file(str(SOURCE))
    path.write_bytes(path.read_bytes() + b"{}\n")
    for use in (lambda: fetch_rows(SOURCE), lambda: data.read_rows(str(SOURCE))):
        with pytest.raises(InputError, match=f"expected the file that was first fetched .* delete {path}"):
            use()


def test_rows_without_a_form_in_json_leave_nothing(hub: Hub) -> None:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"day": [date(2025, 1, 1)]}), file)
    hub.push("datasets/acme/rows", {"train.parquet": file.getvalue()})
    with pytest.raises(InputError, match="row 1: expected texts, numbers, lists and objects"):
        fetch_rows(SOURCE)
    assert not lock.lock_file().exists() and list((lock.cache() / "rows").iterdir()) == []


def test_a_model_that_only_has_pickle_weights_is_not_pinned(hub: Hub) -> None:
    hub.push("acme/tiny", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(InputError, match="no weights"):
        fetch_model("acme/tiny", None)
    assert not lock.lock_file().exists()


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "file" / "cache"))
    for use in (lambda: fetch_model("acme/tiny", None), lambda: fetch_rows(SOURCE)):
        with pytest.raises(InputError, match="cannot be|Not a directory"):
            use()
    assert hub.asked == []


def test_the_verb_says_what_it_has_of_which_commit(hub: Hub, profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows = push(hub)
    for expected in (True, False):
        hub.asked.clear()
        assert main(["fetch", profile]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"model acme/tiny@main → {model}, 12.6 MB",
            f"data hub:acme/alpaca@main:train → {rows}, 0.2 MB",
            f"data bundled:boolq.jsonl: {DATA / 'boolq.jsonl'}",
        ]
        assert bool(hub.asked) == expected


def test_the_verb_stops_at_what_cannot_be_had_and_keeps_what_can(
    hub: Hub, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    push(hub)
    del hub.repositories["datasets/acme/alpaca"]
    assert main(["fetch", profile]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fpbench: data source 'hub:acme/alpaca@main:train': expected a repository")
    assert error.count("\n") == 1 and list(lock.pins()) == ["model:acme/tiny@main"]
    hub.asked.clear()
    push(hub)
    assert main(["fetch", profile]) == 0 and not any("acme/tiny" in asked for asked in hub.asked)


def test_a_gated_model_is_named_with_its_licence_page_by_fetch_and_run(
    hub: Hub, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(hub, gated=True)
    for verb in (["fetch", profile], ["run", "--profile", profile, "--out", str(tmp_path / "out")]):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert error.startswith("fpbench: model 'acme/tiny' is gated") and error.count("\n") == 1
        assert f"{hub.url}/acme/tiny and set HF_TOKEN" in error
    assert not (tmp_path / "out").exists() and not lock.lock_file().exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_fetch_goes_on_where_it_was(profile: str, tmp_path: Path, stop: signal.Signals) -> None:
    with running() as hub:
        push(hub)
        hub.stalled = "model.safetensors"
        variables = os.environ | environment(hub, tmp_path) | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "fpbench", "fetch", profile]
        child = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
        assert hub.reached.wait(60)
        child.send_signal(stop)
        # The rest of the file is never sent: a fetch that waited for it would not end.
        _, error = child.communicate(timeout=60)
        assert child.returncode == 128 + stop and "run the same command again to resume" in error
        assert not (tmp_path / "fpbench" / "lock.json").exists()
        had = {file.rsplit("/", 1)[1] for file in hub.downloads()} - {"model.safetensors"}
        assert "config.json" in had
        hub.asked.clear()
        hub.stalled = None
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not had & {file.rsplit("/", 1)[1] for file in hub.downloads()}
        assert len(json.loads((tmp_path / "fpbench" / "lock.json").read_text())) == 2
