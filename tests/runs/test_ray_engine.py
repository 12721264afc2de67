"""The Ray engine on a real Ray: the records of the serial engine, and what a lost worker costs."""

from pathlib import Path
from typing import Any

import pytest

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.runs.api import create_engine
from fpbench.runs.engine import Serial
from fpbench.runs.plan import Job
from fpbench.runs.profile import load_profile
from fpbench.runs.ray import RayWorker, capacity, request
from fpbench.runs.worker import Worker
from tests.runs.grids import SHORT, write_tiny
from tests.runs.ray_grid import finished, kill, records, run, workers


@pytest.fixture
def cluster() -> Any:
    """A Ray cluster of one node, with room for one worker."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'fpbench[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_ray_leaves_the_records_of_the_serial_engine_also_where_a_worker_is_killed(
    tmp_path: Path, cluster: Any, tiny_run: Path
) -> None:
    """Two workers are slow."""
    profile = write_tiny(tmp_path / "tiny.toml", SHORT)
    # The tiny run of the serial engine has further conditions.
    expected = {name: each for name, each in records(tiny_run).items() if name.split("/")[-2] in SHORT}
    assert len(expected) > 10 and all(each["status"] == "done" for each in expected.values() if isinstance(each, dict))

    said: list[str] = []
    kept: dict[str, tuple[int, int]] = {}

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 6:  # in the middle of a checkpoint
            kept.update(finished(tmp_path / "ray"))
            (worker,) = workers()
            kill(worker)

    engine = create_engine("ray", cluster.address)
    run(profile, tmp_path / "ray", engine, say)
    assert sum("its worker was lost (1 of 3 times)" in line for line in said) == 1
    assert records(tmp_path / "ray") == expected
    assert len(kept) >= 6 and kept.items() <= finished(tmp_path / "ray").items()

    # A finished grid is known by its files: nobody is asked to measure.
    said.clear()
    run(profile, tmp_path / "ray", engine, say)
    assert said == []


def test_an_engine_is_named_and_only_ray_has_an_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(create_engine("serial"), Serial)
    with pytest.raises(InputError, match="unknown engine 'rey'.*did you mean 'ray'"):
        create_engine("rey")
    with pytest.raises(InputError, match="add --engine ray"):
        fpbench.run(ray_address="auto")
    assert main(["run", "--ray-address", "auto"]) == 2
    assert "add --engine ray" in capsys.readouterr().err
    monkeypatch.setattr("fpbench.runs.ray.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fpbench\[ray\]'"):
        create_engine("ray")


def job_of(profile: Path, device: str, out: Path) -> Job:
    return Job(load_profile(str(profile)), {"micro": MODEL}, Loading(device), out)


@pytest.mark.parametrize(
    ("address", "device", "message"),
    [
        (None, "cuda:1", "device 'cuda:1' cannot be chosen with Ray"),
        ("127.0.0.1:1", "cpu", "no Ray cluster answers at '127.0.0.1:1'"),
        ("nowhere", "cpu", "no Ray cluster answers at 'nowhere'"),
        ("auto", "cpu", "the Ray cluster 'auto' cannot be joined"),
    ],
)
def test_a_cluster_that_is_not_there_is_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, device: str, message: str
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fpbench[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    profile = write_tiny(tmp_path / "tiny.toml", SHORT)
    with pytest.raises(InputError, match=message):
        create_engine("ray", address).check(Worker(job_of(profile, device, tmp_path / "out"), no_progress), [])
    assert not (tmp_path / "out").exists()


def test_a_worker_asks_for_what_the_profile_says(tmp_path: Path) -> None:
    profile = write_tiny(tmp_path / "tiny.toml", SHORT)
    assert request(job_of(profile, "cpu", tmp_path), "micro") == {"CPU": 1}
    assert request(job_of(profile, "cuda", tmp_path), "micro") == {"CPU": 1, "GPU": 1}
    text = profile.read_text().replace("threads = 1", "threads = 4")
    profile.write_text(text + "\n[resources]\nmemory_gb = 24\n")
    assert request(job_of(profile, "cpu", tmp_path), "micro") == {"CPU": 4, "memory": 24 * 2**30}
    profile.write_text(text.replace("top_k = 50", "top_k = 50\nresources = { gpus = 0.25 }") + "\n[resources]\ngpus=1")
    assert request(job_of(profile, "cuda", tmp_path), "micro") == {"CPU": 4, "GPU": 0.25}
    profile.write_text(text + "\n[resources]\ngpus = 2\n")
    with pytest.raises(InputError, match="resources.gpus"):
        load_profile(str(profile))


def test_a_worker_works_only_where_it_sees_the_driver_s_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(write_tiny(tmp_path / "tiny.toml", SHORT), "cpu", tmp_path / "out")
    for folder, missing in ((tmp_path, tmp_path / "out"), (tmp_path / "elsewhere", tmp_path / "elsewhere")):
        work = RayWorker(job, folder, tmp_path / "out" / ".driver.0").measure([])
        assert next(work) == {}
        with pytest.raises(InputError, match=f"does not see {missing} of the driver"):
            next(work)


def test_a_worker_has_to_fit_on_one_node() -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in resources]

    assert capacity(nodes({"CPU": 8, "GPU": 2}, {"CPU": 3, "GPU": 1}), {"CPU": 2, "GPU": 1}) == 3
    assert capacity(nodes({"CPU": 3}, {"CPU": 3}), {"CPU": 2}) == 2
    assert capacity(nodes({"CPU": 64}), {"CPU": 1, "GPU": 1}) == 0
    assert capacity(nodes({"CPU": 64, "GPU": 1}), {"CPU": 1, "GPU": 0.1}) == 10
    assert capacity(nodes({"CPU": 64, "memory": 10.0}), {"CPU": 1, "memory": 4.0}) == 2
    assert capacity([{"Alive": False, "Resources": {"CPU": 8}}], {"CPU": 1}) == 0
