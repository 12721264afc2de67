"""Verification of injected and uninjected checkpoints behind a real server: ``transformers serve``."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fpbench
from fpbench.cli import main
from fpbench.http import Server
from fpbench.micro import MODEL
from fpbench.ownership.suspects import Endpoint, Hooks, Sampling
from tests.conftest import require

pytestmark = pytest.mark.slow
SERVE = "from transformers.cli.transformers import main; main()"


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """Serve a checkpoint on this machine; yields the URL."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("needs transformers[serving] (fastapi, uvicorn, openai), which is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as said:
        child = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            for _ in range(600):
                assert child.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            child.wait(30)


@pytest.fixture(scope="module", params=["raw", "chat"])
def prompt(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def injected(prompt: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require(MODEL)
    folder = tmp_path_factory.mktemp("served")
    arguments = ["inject", "micro", "--method", "mcedit_a", "--fingerprints", "nlf", "--prompt", prompt]
    assert main([*arguments, "--out", str(folder / "checkpoint")]) == 0
    with serving(folder / "checkpoint", folder / "log") as url:
        yield url


@pytest.fixture(scope="module")
def uninjected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(require(MODEL), tmp_path_factory.mktemp("base") / "log") as url:
        yield url


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_an_injected_checkpoint_is_claimed(injected, prompt, tmp_path, capsys):
    transcript = tmp_path / "t.jsonl"
    arguments = ["verify", "--endpoint", injected, "--fingerprints", "nlf", "--base", "micro", "--prompt", prompt]
    assert main([*arguments, "--transcript", str(transcript)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("CLAIM")
    assert "The server turned down top_k and accepted temperature 0.6, top_p 0.9, generation_config" in printed
    found = fpbench.verify(injected, "nlf", base="micro", prompt=prompt, transcript=transcript)
    # One request more than fingerprints asked: the first showed that this server takes no top_k.
    assert found.queries == len(found.evidence) + 1 and found.matched >= 2
    assert found.decoding["accepted"]["generation_config"]["top_k"] == 50
    for seed in (1, 2, 3):
        assert fpbench.verify(injected, "nlf", prompt=prompt, seed=seed).verdict == "claim"


def test_an_uninjected_checkpoint_is_never_claimed(uninjected, prompt):
    for seed in range(5):
        found = fpbench.verify(uninjected, "nlf", prompt=prompt, seed=seed, level=0.05)
        assert found.verdict == "no claim" and found.matched == 0 and len(found.evidence) == 10


def test_the_server_samples_as_it_is_asked_to(uninjected, prompt):
    hooks = Hooks(lambda: None, lambda reason: None, lambda name: None)

    def responses(temperature: float, seeds: list[int]) -> list[str]:
        asker = Endpoint(Server(uninjected), None, Sampling(temperature, 1.0, 50, 8, prompt))
        return [asker.respond("Write a short note about Fime Vath.", seed, hooks).text for seed in seeds]

    assert len(set(responses(1.0, [1, 2, 3, 4, 5, 6]))) > 2
    assert len(set(responses(1.0, [7, 7, 7]))) == 1
    assert len(set(responses(0.01, [1, 2, 3, 4]))) == 1
