"""Submissions are found where the registry is told to look: by the command line, by the public API, and by name."""

import pickle  # noqa: TID251 - as finders travel to Ray's workers
import subprocess
import sys
from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.registry import METHODS, Registry
from fpbench.runs.plan import Job
from fpbench.runs.profile import load_profile
from fpbench.runs.ray import RayWorker
from fpbench.submissions.discovery import Discovery
from tests.submissions.hostile import NAME, write


def test_the_registry_knows_no_folder_by_itself(tmp_path: Path) -> None:
    write(tmp_path / "submissions" / NAME)
    code = f"from fpbench.registry import METHODS; assert {NAME!r} not in METHODS.names(); import fpbench; "
    code += f"fpbench.register; assert {NAME!r} in METHODS.names(); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_the_command_line_and_the_api_find_what_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "submissions" / NAME)
    assert main(["list"]) == 0 and NAME not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(NAME))
    assert "Handed in, of " in line and "https://" in line
    assert fpbench.register and METHODS.get(NAME).name == NAME
    assert METHODS.finders == [Discovery()] and not METHODS.taken(NAME)


def test_a_folder_can_be_named_and_its_finder_travels(tmp_path: Path) -> None:
    registry: Registry = Registry("method", {})  # type: ignore[type-arg]
    finder = Discovery(tmp_path / "theirs")
    registry.add_finder(pickle.loads(pickle.dumps(finder)))
    registry.add_finder(finder)
    assert registry.finders == [finder] and registry.names() == []
    write(tmp_path / "theirs" / NAME)
    assert registry.names() == [NAME] and registry.get(NAME) is registry.get(NAME)
    (tmp_path / "theirs" / NAME / "weights.pkl").write_text("")
    with pytest.raises(InputError, match="is refused: pickle"):
        registry.get(NAME)
    with pytest.raises(InputError, match="unknown method 'other': expected one of stranger"):
        registry.get("other")


def test_a_worker_of_a_cluster_finds_what_its_driver_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "finders", [])
    job = Job(load_profile("micro", fingerprints=["nowhere.jsonl"]), {"micro": MODEL}, Loading("cpu"), tmp_path)
    work = RayWorker(job, tmp_path, tmp_path, [("method", Discovery())]).measure([])
    assert next(work) == {}
    with pytest.raises(InputError, match="nowhere.jsonl"):
        next(work)
    assert METHODS.finders == [Discovery()]
