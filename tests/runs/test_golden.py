"""Hold the records of one small grid, field by field, against those recorded in ``tests/runs/golden``.

The guard of a restructuring: code may move, what a run writes may not. It says nothing about which numbers are right.
After a change that is meant to move a figure, record anew with one thread and look at the difference::

    OMP_NUM_THREADS=1 python -m tests.runs.test_golden

On the machine that recorded, with one thread, ``FPBENCH_GOLDEN_EXACT=1`` holds floats to every digit.

The grid is not that of ``small_run``: it needs an editing and a training method, and ends in a fraction of the time.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fpbench.micro import DATA, MODEL
from tests.conftest import require

GOLDEN = Path(__file__).parent / "golden"

# Values that are no result of the code. Their keys are compared all the same, those below them too; see `blanked`.
LEFT_ASIDE = {
    "checksum": "SHA-256 over the record's text, so over the times in it",
    "commit": "git commit of the checkout (and of a model's repository, which the bundled model has none of)",
    "dirty": "state of the checkout",
    "machine": "processor, cores, memory, threads",
    "method_source": "digest of a method's file, which a restructuring moves",
    "modification_peak_memory": "memory depends on allocator, machine and what ran before in the process",
    "modification_seconds": "time",
    "packages": "versions installed here",
    "peak_memory": "as modification_peak_memory",
    "python": "version installed here",
    "seconds": "time; in the record of the cost a table of times, whose names are compared",
    "sha256": "over the per-query results' text, whose floats differ in the last digits; each line is compared below",
    "source": "digest of fpbench's own code",
    "weights_digest": "over injected weights, which differ in the last bits by processor; whether there is one is kept",
}
PLACEHOLDER = "left aside"

# Relative and absolute tolerance of floats. Another processor, number of threads or size of batches adds floats up in
# another order, and an injection carries that on; the same machine with the same threads repeats every digit. Measured
# with torch, MKL and oneDNN held to AVX2 and to their oldest instructions, against AVX-512: probabilities move by up to
# 0.6 %, and by up to 3.3 % where weights or activations are then rounded to 8 or 4 bits, which a last digit can turn
# over. Allowed is more than twice that. Counts, texts and identities did not move: they are compared exactly.
TOLERANCE, QUANTIZED = (1.5e-2, 1.5e-3), (8e-2, 4e-3)
EXACT = "FPBENCH_GOLDEN_EXACT"

# Few LoRA epochs and AlphaEdit steps: half-finished injections have probabilities between 0 and 1, which show a change
# that 0 and 1 would hide.
PROFILE = """
methods = ["alphaedit", "lora"]
fingerprints = ["nlf"]
conditions = ["origin", "int8", "nf4", "ria30"]

[[models]]
name = "micro"
path = "micro"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "bundled:alpaca.jsonl"
calibration = "bundled:text.jsonl"
statistics = "bundled:text.jsonl"
zsre = "bundled:zsre.jsonl"
boolq = "bundled:boolq.jsonl"
rte = "bundled:rte.jsonl"
arc_challenge = "bundled:arc.jsonl"
tinymmlu = "bundled:mmlu.jsonl"
wikitext = "{folder}/prose.txt"

[sizes]
context_rows = 2
substitutions = 20
substitute_words = 40
near_triggers = 10
band_texts = 30
statistics_tokens = 10000
utility_limit = 8

[modifications.ria30]
samples = 8

[hyperparameters.alphaedit]
steps = 4

[hyperparameters.lora]
learning_rate = 1e-3
epochs = 8
"""
PROSE = 12_000  # characters of the bundled prose whose perplexity is taken


def ran(folder: Path) -> Path:
    """Run the small grid through the public door; return the folder of its records."""
    import fpbench

    (folder / "prose.txt").write_text((DATA / "prose.txt").read_text(encoding="utf-8")[:PROSE], encoding="utf-8")
    profile = folder / "golden.toml"
    profile.write_text(PROFILE.replace("{folder}", str(folder)), encoding="utf-8")
    fpbench.run(str(profile), out=folder / "out")
    return folder / "out" / "records"


def blanked(value: Any) -> Any:
    """Replace every value below by a placeholder; keep the keys."""
    return {key: blanked(below) for key, below in value.items()} if isinstance(value, dict) else PLACEHOLDER


def stripped(value: Any) -> Any:
    """Blank what is left aside, at any depth."""
    if isinstance(value, list):
        return [stripped(below) for below in value]
    if not isinstance(value, dict):
        return value
    absent = {key for key in value if key == "weights_digest" and value[key] is None}
    left = LEFT_ASIDE.keys() - absent
    return {key: blanked(below) if key in left else stripped(below) for key, below in value.items()}


def read(folder: Path) -> dict[str, Any]:
    """Read every record, without what is left aside, and every file of per-query results as a list of lines."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(folder).as_posix()
        lines = path.suffix == ".jsonl"
        found[name] = stripped([json.loads(line) for line in text.splitlines()] if lines else json.loads(text))
    return found


def tolerance(name: str) -> tuple[float, float]:
    """How far floats of a file may be from the recorded ones: relative, absolute."""
    if os.environ.get(EXACT):
        return 0.0, 0.0
    return QUANTIZED if {"int8", "nf4"} & set(name.split("/")) else TOLERANCE


def differences(found: Any, golden: Any, place: str, allowed: tuple[float, float]) -> Iterator[str]:
    """Say where two values differ: floats by more than what is allowed, anything else at all."""
    if isinstance(found, dict) and isinstance(golden, dict):
        for key in sorted(found.keys() ^ golden.keys()):
            yield f"{place} {key}: {'is new' if key in found else 'is missing'}"
        for key in sorted(found.keys() & golden.keys()):
            yield from differences(found[key], golden[key], f"{place} {key}", allowed)
    elif isinstance(found, list) and isinstance(golden, list):
        if len(found) != len(golden):
            yield f"{place}: {len(found)} entries instead of {len(golden)}"
        for index, (one, other) in enumerate(zip(found, golden, strict=False)):
            yield from differences(one, other, f"{place} [{index}]", allowed)
    else:
        same = type(found) is type(golden) and found == golden
        if isinstance(found, float) and isinstance(golden, float):
            same = math.isclose(found, golden, rel_tol=allowed[0], abs_tol=allowed[1])
        if not same:
            yield f"{place}: {found!r} instead of {golden!r}"


def record(records: Path) -> None:
    """Write the golden files anew from a run's records."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, content in read(records).items():
        path = GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            text = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in content)
        else:
            text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(MODEL)
    return ran(tmp_path_factory.mktemp("golden"))


def test_the_small_grid_gives_the_recorded_records(records):
    found, golden = read(records), read(GOLDEN)
    assert found.keys() == golden.keys()
    wrong = [line for name in golden for line in differences(found[name], golden[name], name, tolerance(name))]
    assert not wrong, "\n".join([f"{len(wrong)} values differ from tests/runs/golden:", *wrong[:40]])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record(ran(Path(folder)))
