"""A small grid on the bundled model, run once for all tests that look at its records."""

import shutil
from pathlib import Path

import pytest

from fpbench.micro import DATA, MODEL
from tests.conftest import made_once, require
from tests.runs.grids import CONDITIONS, SMALL, write_tiny


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory) -> str:
    require(MODEL)

    def write(folder: Path) -> None:
        prose = (DATA / "prose.txt").read_text(encoding="utf-8")
        (folder / "prose.txt").write_text(prose[:5_000], encoding="utf-8")
        (folder / "small.toml").write_text(SMALL.replace("bundled:prose.txt", f"{folder}/prose.txt"))

    return str(made_once(tmp_path_factory, "small", write) / "small.toml")


@pytest.fixture(scope="session")
def small_run(small_profile, tmp_path_factory) -> Path:
    """The folder of a finished run of the small grid: to be read only, since every worker reads it."""

    def run(out: Path) -> None:
        import fpbench

        records = fpbench.run(small_profile, out=out)
        assert all(record["status"] == "done" for record in records), [r["reason"] for r in records if "reason" in r]

    return made_once(tmp_path_factory, "small-run", run)


@pytest.fixture
def finished_run(small_run, tmp_path) -> Path:
    """A copy of the finished run of the small grid, to be run again."""
    return shutil.copytree(small_run, tmp_path / "finished")


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory) -> str:
    """The conditions of the small grid, with as little of every metric as shows that it travels."""
    require(MODEL)
    folder = made_once(tmp_path_factory, "tiny", lambda folder: write_tiny(folder / "tiny.toml", CONDITIONS))
    return str(folder / "tiny.toml")


@pytest.fixture(scope="session")
def tiny_run(tiny_profile, tmp_path_factory) -> Path:
    """The folder of a finished run of the tiny grid: to be read only."""

    def run(out: Path) -> None:
        import fpbench

        assert all(record["status"] == "done" for record in fpbench.run(tiny_profile, out=out))

    return made_once(tmp_path_factory, "tiny-run", run)
