"""A run of a fetched profile opens no socket: the real command line in a process that may not have any."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fpbench.micro import DATA, MODEL
from tests.conftest import ROOT
from tests.hub.server import environment, files_of, running

SETS = ("alpaca", "math", "text", "zsre", "boolq", "rte", "arc")
# What tinyMMLU's own rows would need, its item parameters, is not on the hub.
PROFILE = """
methods = []
fingerprints = ["nlf"]
conditions = ["origin"]

[[models]]
path = "acme/tiny"
revision = "v1"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "hub:acme/alpaca@main:train"
math = "hub:acme/math@main:train"
calibration = "hub:acme/text@main:train"
statistics = "hub:acme/text@main:train"
zsre = "hub:acme/zsre@main:train"
boolq = "hub:acme/boolq@main:train"
rte = "hub:acme/rte@main:train"
arc_challenge = "hub:acme/arc@main:train"
tinymmlu = "bundled:mmlu.jsonl"
wikitext = "hub:acme/text@main:train"

[sizes]
context_rows = 1
substitutions = 4
substitute_words = 4
near_triggers = 4
band_texts = 20
statistics_tokens = 2000
utility_limit = 2
"""
# Python imports sitecustomize first of all. It refuses every socket and writes down who asked for one, also where the
# refusal is taken in silence. One asker is known: urllib3, which lm-eval imports, tries on import whether this machine
# has an IPv6 address of its own; that one is refused too.
WATCH = """
import socket
import sys

def watch(event, arguments):
    opened = event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6)
    if opened or event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"] == "socket":
            frame = frame.f_back
        if frame.f_code.co_name != "_has_ipv6":
            with open({log!r}, "a") as log:
                print(frame.f_globals["__name__"], event, arguments, file=log)
        raise PermissionError("no sockets here")

sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Fetched:
    """A folder with a profile that was fetched, and the variables of processes that may have no sockets."""

    folder: Path
    variables: dict[str, str]

    def run(self, out: str, *options: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fpbench", "run", "--profile", "own.toml", "--out", out, *options]
        return subprocess.run(command, env=self.variables | changed, cwd=self.folder, capture_output=True, text=True)

    def tried(self) -> str:
        """Who asked for a socket since this was asked last."""
        log = self.folder / "sockets"
        found = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return found


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """Fetched from a hub that has gone away since."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "own.toml").write_text(PROFILE)
    with running() as hub:
        hub.push("acme/tiny", files_of(MODEL), "v1")
        for name in SETS:
            lines = (DATA / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
            hub.push(f"datasets/acme/{name}", {"train.jsonl": b"".join(lines[:40])})
        variables = os.environ | environment(hub, folder) | {"PYTHONPATH": str(ROOT)}
        fetch = [sys.executable, "-m", "fpbench", "fetch", "own.toml"]
        done = subprocess.run(fetch, env=variables, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH.format(log=str(folder / "sockets")))
    return Fetched(folder, variables | {"PYTHONPATH": f"{folder / 'watch'}{os.pathsep}{ROOT}"})


def test_a_fetched_profile_runs_without_sockets(fetched: Fetched) -> None:
    done = fetched.run("out", "--offline")
    assert done.returncode == 0, done.stderr
    assert fetched.tried() == ""
    records = [json.loads(path.read_text()) for path in (fetched.folder / "out" / "records").rglob("*.json")]
    assert records and all(record["status"] == "done" for record in records)
    pins = json.loads((fetched.folder / "fpbench" / "lock.json").read_text())
    digests = {next(iter(pin["files"].values())) for name, pin in pins.items() if name.startswith("hub:")}
    commit = pins["model:acme/tiny@v1"]["commit"]
    assert {(record["provenance"]["revision"], record["provenance"]["commit"]) for record in records} == {
        ("v1", commit)
    }
    (utility,) = (record for record in records if record["cell"]["metric"] == "utility")
    named = utility["identity"]["metric_data"]
    assert {digest for name, digest in named.items() if name != "tinymmlu"} <= digests


@pytest.mark.slow
def test_what_was_not_fetched_is_named_by_an_offline_run(fetched: Fetched) -> None:
    pins = json.loads((fetched.folder / "fpbench" / "lock.json").read_text())
    other = fetched.folder / "other"
    other.mkdir()
    (other / "lock.json").write_text(json.dumps({name: pins[name] for name in pins if name.startswith("model:")}))
    done = fetched.run("none", "--offline", FPBENCH_CACHE=str(other))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "data source 'hub:acme/alpaca@main:train' is not here" in done.stderr and "fpbench fetch" in done.stderr
    assert fetched.tried() == "" and not (fetched.folder / "none").exists()
    # The watch sees what it is there for: the same run, where it may ask the hub, tries to.
    assert fetched.run("none", FPBENCH_CACHE=str(other)).returncode == 2
    assert "socket" in fetched.tried()
