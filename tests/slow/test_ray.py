"""Losing workers, a node and the driver: the leaderboard of an undisturbed run, and nothing measured twice."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fpbench.micro import MODEL
from fpbench.records.store import read_records
from fpbench.runs.api import create_engine
from fpbench.runs.engine import Serial
from tests.conftest import require
from tests.runs.grids import CONDITIONS, SHORT, write_tiny
from tests.runs.ray_grid import board, finished, kill, records, run, workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(MODEL)
    path = write_tiny(tmp_path_factory.mktemp("profile") / "tiny.toml", CONDITIONS)
    path.write_text('methods = ["mcedit_a", "fpedit"]\n' + path.read_text().replace('methods = ["mcedit_a"]\n', ""))
    return path


@pytest.fixture(scope="module")
def undisturbed(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The leaderboard of the serial engine."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(profile, out, Serial(), print)
    assert all(record.status == "done" for record in read_records(out / "records"))
    return board(out)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, with room for one worker each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'fpbench[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.node = cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


class Killer:
    """Kills every worker at a seeded moment after a finished cell, again and again, until it has killed enough.

    It waits until the cells that it interrupted are finished, so that none is lost three times.
    """

    def __init__(self, out: Path, enough: int) -> None:
        self.out, self.enough = out, enough
        self.random = random.Random(42)
        self.killed = 0
        self.lost: set[str] = set()
        self.kept: dict[str, tuple[int, int]] = {}
        self.timer: threading.Timer | None = None

    def say(self, line: str) -> None:
        print(line)
        cell, _, rest = line.partition(": its worker was lost")
        if rest:
            self.lost.add(cell)
            return
        self.lost.discard(line.partition(" ")[0])
        if not self.lost and not (self.timer and self.timer.is_alive()) and self.killed < self.enough:
            self.timer = threading.Timer(self.random.uniform(0, 2), self.strike)
            self.timer.start()

    def strike(self) -> None:
        self.kept |= finished(self.out)
        for worker in workers()[: self.enough - self.killed]:
            kill(worker)
            self.killed += 1


def test_two_workers_leave_the_records_of_the_serial_engine(cluster: Any, tmp_path: Path) -> None:
    profile = write_tiny(tmp_path / "tiny.toml", SHORT)
    run(profile, tmp_path / "serial", Serial(), print)
    seen: set[int] = set()
    said: list[str] = []

    def look(line: str) -> None:
        said.append(line)
        seen.update(worker.pid for worker in workers())

    run(profile, tmp_path / "two", create_engine("ray", cluster.address), look)
    assert len(seen) == 2
    assert records(tmp_path / "two") == records(tmp_path / "serial")
    assert len(said) == 10 and said[-1].endswith("(10/10 cells)")


def test_ten_killed_workers_change_nothing(profile: Path, undisturbed: str, cluster: Any, tmp_path: Path) -> None:
    killer = Killer(tmp_path / "out", enough=10)
    run(profile, tmp_path / "out", create_engine("ray", cluster.address), killer.say)
    assert killer.killed == 10
    assert board(tmp_path / "out") == undisturbed
    assert len(killer.kept) >= 5 and killer.kept.items() <= finished(tmp_path / "out").items()


def test_a_lost_node_changes_nothing(profile: Path, undisturbed: str, cluster: Any, tmp_path: Path) -> None:
    said: list[str] = []
    kept: dict[str, tuple[int, int]] = {}

    def say(line: str) -> None:
        print(line)
        said.append(line)
        if len(said) == 6:
            kept.update(finished(tmp_path / "out"))
            cluster.remove_node(cluster.node, allow_graceful=False)

    run(profile, tmp_path / "out", create_engine("ray", cluster.address), say)
    assert any("its worker was lost (1 of 3 times)" in line for line in said)
    assert board(tmp_path / "out") == undisturbed
    assert kept.items() <= finished(tmp_path / "out").items()


def test_a_cell_whose_worker_is_lost_three_times_is_a_failed_one(profile: Path, cluster: Any, tmp_path: Path) -> None:
    """And the next run measures it: the reason may be gone."""
    cluster.remove_node(cluster.node)
    said: list[str] = []

    def say(line: str) -> None:
        print(line)
        said.append(line)
        if len(said) == 2:
            kill(*workers())
        elif "lost (1 of 3" in line or "lost (2 of 3" in line:
            threading.Thread(target=strike).start()

    def strike() -> None:
        while not (here := workers()):
            time.sleep(0.05)
        time.sleep(1)  # it has begun, and is reading its libraries
        kill(*here)

    run(profile, tmp_path / "out", create_engine("ray", cluster.address), say)
    failed = [record for record in read_records(tmp_path / "out/records") if record.status != "done"]
    lost = {line.partition(":")[0] for line in said if "its worker was lost" in line}
    assert {record.cell.path for record in failed} == lost and len(lost) == 1
    assert failed[0].reason == "the worker that measured it was lost three times"
    assert "lost three times" in (tmp_path / "out/leaderboard.md").read_text()
    kept = finished(tmp_path / "out")
    run(profile, tmp_path / "out", Serial(), print)
    assert all(record.status == "done" for record in read_records(tmp_path / "out/records"))
    changed = kept.items() - finished(tmp_path / "out").items()
    assert len(changed) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_driver_leaves_no_process_and_a_resumable_store(
    profile: Path, undisturbed: str, tmp_path: Path, number: int, code: int
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fpbench[ray]'")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fpbench", "run", "--profile", str(profile), "--out", str(out), "--engine", "ray"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
    while len(finished(out)) < 4 and driver.poll() is None:
        time.sleep(0.2)
    started = psutil.Process(driver.pid).children(recursive=True)
    measuring = [process for process in started if process.cmdline()[:1] == ["ray::RayWorker.measure"]]
    assert measuring
    driver.send_signal(number)
    assert driver.wait(60) == code, (tmp_path / "log").read_text()
    if number != signal.SIGKILL:
        assert "run the same command again to resume" in (tmp_path / "log").read_text().splitlines()[-1]
        assert not list(out.glob(".driver.*"))
    # Killed itself, it cannot end Ray's idle agents, and Ray does not always; workers have to end.
    _, alive = psutil.wait_procs(measuring if number == signal.SIGKILL else started, timeout=30)
    assert not alive
    kept = {path: at for path, at in finished(out).items() if json.loads(Path(path).read_text())["status"] == "done"}
    run(profile, out, Serial(), print)
    assert board(out) == undisturbed
    assert len(kept) >= 4 and kept.items() <= finished(out).items()
