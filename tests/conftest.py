"""Fixtures: the bundled micro model, and the real models and data where they are at hand."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401  (reads once whether it may go online: before any test says otherwise)
import pytest

# A shell that runs the tests in the background has them ignore SIGINT, and so every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers on two cores: one thread each, also in the processes that they start. Set before torch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FPBENCH_SHARED", ROOT.parent / "shared"))
PARITY = Path(os.environ.get("FPBENCH_PARITY", SHARED / "parity"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What injections keep in fpbench's cache is this session's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Verbs set variables for their own process (``--offline``); a test's successors are not that process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Benchmarks are timed, so they run in this process; anything else on every core (``-n auto``)."""
    return 0 if "benchmark" in config.option.markexpr.split() and "not" not in config.option.markexpr.split() else None


Register = Callable[[type], str]


@contextmanager
def registered_for_now() -> Iterator[None]:
    """Forget at the end what was registered meanwhile, but for the package's own: no other code may."""
    from fpbench.registry import ADVERSARIES, METHODS, MODIFICATIONS

    before = [(registry, set(registry._classes)) for registry in (ADVERSARIES, METHODS, MODIFICATIONS)]
    try:
        yield
    finally:
        for registry, known in before:
            for name in registry._classes.keys() - known - set(registry.own):
                del registry._classes[name]


@pytest.fixture
def registered() -> Iterator[Register]:
    """Registers a class under a name of its own, for one test."""
    from fpbench.registry import METHODS

    def register(method: type) -> str:
        name = f"{method.__name__.lower()}_of_a_test"
        METHODS.register(name)(method)
        return name

    with registered_for_now():
        yield register


def require(path: Path) -> Path:
    """Return ``path``, or skip the test saying what is missing."""
    if not path.exists():
        pytest.skip(f"needs {path}, which is not here")
    return path


@cache
def unkept() -> str | None:
    """Why submissions are refused on this machine, if they are."""
    from fpbench.submissions.process import confinement

    return confinement().refused(unconfined=False)


def require_confinement() -> None:
    """Skip the test, saying what is missing, where this machine cannot confine a submission."""
    if why := unkept():
        pytest.skip(why)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models, data and parity fixtures."""
    return require(SHARED)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker to ask for it makes for all of them."""
    common = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    folder, made = common / name, common / f"{name}.made"
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def load_plain(path: Path) -> tuple[Any, Any]:
    """Load model and tokenizer in float32 with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(path)


def _guarded(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield a session-wide model and fail if a test left it changed."""
    import torch

    model, tokenizer = load_plain(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield model, tokenizer
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed, f"a test changed the shared model: {changed[:3]}; work on a copy.deepcopy of it"


@pytest.fixture(scope="session")
def micro() -> Iterator[tuple[Any, Any]]:
    """The bundled model and tokenizer; copy the model before changing it."""
    from fpbench.micro import MODEL

    yield from _guarded(require(MODEL))


@pytest.fixture(scope="session")
def stories() -> Iterator[tuple[Any, Any]]:
    """The stories3M model and tokenizer; copy the model before changing it."""
    yield from _guarded(require(SHARED / "models" / "stories3M"))


@pytest.fixture(scope="session")
def fingerprinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the bundled model with ``nlf`` in it, as raw text: to be read only, since all workers do."""
    from fpbench.cli import main
    from tests.descendants import light_profile

    def inject(folder: Path) -> None:
        arguments = ["--method", "mcedit_a", "--fingerprints", "nlf", "--profile", light_profile(folder)]
        assert main(["inject", "micro", *arguments, "--out", str(folder / "checkpoint")]) == 0

    return made_once(tmp_path_factory, "fingerprinted", inject) / "checkpoint"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty hub on this machine, which this process asks until the end of the test; see tests/hub/server.py."""
    from tests.hub import server

    with server.running() as running:
        server.use(running, tmp_path / "kept", monkeypatch)
        yield running
