"""The engine of several processes: the records of one process, also where a process is lost."""

import os
from pathlib import Path

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.models.meter import no_progress
from fpbench.records.cell import Cell
from fpbench.runs import memory, processes
from fpbench.runs.api import create_engine
from fpbench.runs.plan import checkpoints, plan
from fpbench.runs.processes import Processes, Share, free_cores, pieces, share_of
from fpbench.runs.profile import load_profile
from fpbench.runs.worker import Worker
from tests.runs.grids import write_tiny
from tests.runs.ray_grid import finished, records, run
from tests.runs.test_ray_engine import job_of


def test_a_lost_process_ends_the_run_and_what_it_leaves_is_gone_on_with(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, out = write_tiny(tmp_path / "tiny.toml", ("origin",)), tmp_path / "out"
    started: list[int] = []
    original = processes._Measurer

    def noted(process, pipe):  # type: ignore[no-untyped-def]
        started.append(process.pid)
        return original(process, pipe)

    monkeypatch.setattr(processes, "_Measurer", noted)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "(3/" in line:
            os.kill(started[0], 9)

    with pytest.raises(CellError, match=r"was lost \(exit code -9\): finished records stay; run the same command"):
        run(profile, out, Processes(2), say)
    assert said[0] == "measured by 2 processes of one thread each" and len(started) == 2
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    kept = finished(out)
    assert len(kept) >= 3
    run(profile, out, Processes(2), print)
    assert kept.items() <= finished(out).items()
    serial = {name: record for name, record in records(tiny_run).items() if "/origin/" in name}
    assert records(out) == serial and len(serial) > 10


def test_cores_are_shared_out_by_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = write_tiny(tmp_path / "tiny.toml", ("origin", "nf4"))
    text = profile.read_text().replace("threads = 1\n", "")
    profile.write_text(text.replace('methods = ["mcedit_a"]', 'methods = ["mcedit_a", "lora", "fpedit"]'))
    worker = Worker(job_of(profile, "cpu", tmp_path / "out"), no_progress)
    cells = checkpoints(plan(load_profile(str(profile))))
    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    for free, share in ((1, Share(1, 1)), (2, Share(2, 1)), (8, Share(4, 1))):
        monkeypatch.setattr(processes, "free_cores", lambda free=free: free)
        assert share_of(worker, cells) == share
    monkeypatch.setattr(memory, "free_memory", lambda: 0.0)
    assert share_of(worker, cells) == Share(1, 1)
    monkeypatch.setattr(processes, "SMALL", 1_000_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert share_of(worker, cells) == Share(1, 6)
    assert Processes(3).share(worker, cells) == Share(3, 1)
    for wrong in (lambda: Processes(0), lambda: create_engine("serial", processes=2)):
        with pytest.raises(InputError, match="processes"):
            wrong()


def test_busy_cores_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {0, 2, 3})
    busy = [0.0, 0.0, 98.0, 7.0]
    monkeypatch.setattr(processes.psutil, "cpu_percent", lambda interval, percpu: busy)
    assert free_cores() == 2
    busy[:] = [100.0] * 4
    assert free_cores() == 1
    busy[:] = [0.0] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert free_cores() == 2


def test_conditions_of_the_same_weights_stay_together() -> None:
    names = ["origin", "suppress@1", "nf4", "nf4+suppress@1", "wrap@8", "merge@0.3"]
    cells = [Cell("micro", "nlf", "lora", 42, name, metric) for name in names for metric in ("fsr", "price")]
    assert [[cell.condition for cell in piece][::2] for piece in pieces(cells)] == [
        ["origin", "suppress@1", "wrap@8"], ["nf4", "nf4+suppress@1"], ["merge@0.3"],
    ]  # fmt: skip


def test_doses_that_may_share_a_training_stay_together() -> None:
    doses = ["finetune_alpaca@25", "finetune_alpaca@50", "finetune_alpaca@50+suppress@1"]
    names = [doses[0], "origin", *doses[1:], "finetune_alpaca+nf4"]
    cells = [Cell("micro", "nlf", "lora", 42, name, "fsr") for name in names]
    found = [[cell.condition for cell in piece] for piece in pieces(cells)]
    assert found == [doses, ["origin"], ["finetune_alpaca+nf4"]]
