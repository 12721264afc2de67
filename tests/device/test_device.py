"""The script for a CUDA device, on a CPU: every step at a hundredth of its sizes, on the micro model."""

import json
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.device import device
from tests.device.prepare import join, toml
from tests.device.punctual import by_price
from tests.device.step import SETTINGS, Step

WEIGHTS = "FPBENCH_SMOLLM2"  # names SmolLM2-135M-Instruct.Q4_1.gguf


def report(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_every_step_on_the_micro_model(tmp_path: Path) -> None:
    assert device.main(["--minutes", "15", "--out", str(tmp_path), "--device", "cpu"]) == 0
    reports = {name: report(tmp_path, name) for name in ("prepare", "agreement", "grid", "shapes", "triggers")}
    assert {name: each.get("error") for name, each in reports.items()} == dict.fromkeys(reports)
    assert {each["status"] for each in reports.values()} == {"done"}

    comparisons = reports["agreement"]["comparisons"]
    assert [each["what"] for each in comparisons] == ["float32", "bfloat16", "int8", "nf4"]
    # Both sides are this CPU.
    assert all(each["agrees"] and each["largest_of_a_target"] == 0 for each in comparisons)
    assert all(each["fsr_cpu"] > 0.9 for each in comparisons)

    cells = {each["cell"]: each for each in reports["grid"]["cells"]}
    assert {each["status"] for each in cells.values()} == {"done"}
    assert len(cells) == 6 * (5 + 6) + 3 + 6
    assert cells["micro/nlf/mcedit_a/seed-42/origin/fsr"]["result"]["mean"] > 0.9
    assert cells["micro/nlf/lora/seed-42/finetune_math/fsr"]["tokens_trained"] > 0
    assert all(each["tokens_read"] > 0 for each in cells.values())

    for model in reports["shapes"]["models"].values():
        assert model["fsr_after"] > model["fsr_before"]
        assert model["changed"]["rank"] == 10

    suite = reports["triggers"]["suite"]
    assert suite["queries"] == sum((2 * 100, 6 * 10 * 5)) and suite["queries_a_second"] > 0


def test_a_failed_step_leaves_the_others_alone(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"GGUF, but another")
    out = tmp_path / "out"
    assert (
        device.main(["--minutes", "2", "--out", str(out), "--weights", str(part), "--steps", "d", "--cut", "500"]) == 0
    )
    assert report(out, "prepare")["error"].startswith("ValueError: the 1 parts make a file of SHA-256 ")
    assert report(out, "triggers")["status"] == "failed"
    assert "Traceback" in (out / "triggers.traceback.txt").read_text()


@pytest.mark.slow
def test_no_time(tmp_path: Path) -> None:
    start = time.time()
    assert device.main(["--minutes", "0.05", "--out", str(tmp_path), "--steps", "c"]) == 0
    assert time.time() - start < 30
    assert report(tmp_path, "prepare")["status"] in ("stopped", "failed", "done")
    assert report(tmp_path, "shapes")["status"] != "running"


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    options = Namespace(out=tmp_path, work=None, device="cpu", cut=None, weights=None)
    step = Step("c", options, until=time.time() + 60)
    assert step.fits("something short", 1)
    assert not step.fits("something long", 600)
    (left_out,) = report(tmp_path, "shapes")["left_out"]
    assert left_out["what"] == "something long" and "600 s" in left_out["why"]


def test_cheap_cells_of_all_methods_come_first() -> None:
    from fpbench.runs.plan import plan
    from fpbench.runs.profile import load_profile

    profile = load_profile("micro", methods=["mcedit_a", "lora"], conditions=["drift"])
    cells = plan(profile)
    groups = list(by_price([[cell for cell in cells if cell.method == name] for name in ("base", "mcedit_a", "lora")]))
    assert sorted(map(str, cells)) == sorted(str(cell) for group in groups for cell in group)
    first = [str(cell).rpartition("seed-42/")[2] for cell in groups[1]]
    assert first == ["origin/cost", "origin/fsr", "int8/fsr", "nf4/fsr", "ria30/fsr", "ria40/fsr"]
    assert [cell.metric for cell in groups[4]] == ["near", "recombined", "utility", "triggers"]
    assert all(cell.condition.startswith("finetune") for group in groups[6:] for cell in group)


def test_parts_are_joined_and_checked(tmp_path: Path) -> None:
    import hashlib
    import lzma

    whole = os.urandom(1000)
    digest = hashlib.sha256(whole).hexdigest()
    for content in (whole, lzma.compress(whole)):
        parts = [tmp_path / "1", tmp_path / "2"]
        parts[0].write_bytes(content[:300])
        parts[1].write_bytes(content[300:])
        assert join(parts, tmp_path / "whole", digest).read_bytes() == whole
    with pytest.raises(ValueError, match="SHA-256"):
        join([tmp_path / "whole", parts[0]], tmp_path / "other", digest)


def test_profile_as_toml() -> None:
    import tomllib

    table = {"a": [1, 2], "b": {"c": 'd"e', "f": {"g": 0.5}}, "h": [{"i": 1}, {"i": 2, "j": True}]}
    assert tomllib.loads(toml(table)) == table


@pytest.mark.slow
def test_the_checkpoint_of_the_weights(tmp_path: Path) -> None:
    if not os.environ.get(WEIGHTS):
        pytest.skip(f"needs SmolLM2-135M-Instruct.Q4_1.gguf, which {WEIGHTS} does not name")
    arguments = ["--minutes", "15", "--out", str(tmp_path), "--weights", os.environ[WEIGHTS], "--steps", "d"]
    assert device.main([*arguments, "--device", "cpu"]) == 0
    assert report(tmp_path, "prepare")["weights_sha256"] == SETTINGS["gguf_sha256"]
    assert report(tmp_path, "triggers")["suite"]["queries_a_second"] > 0
