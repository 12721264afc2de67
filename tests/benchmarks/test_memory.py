"""Memory of a 3B model by measuring it cut to 2 and 4 blocks; the table of docs/memory.md. No time is measured here."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fpbench.models.loading import Loading
from fpbench.runs.memory import MIB, Footprint
from tests.benchmarks.resident import RANK, READ, SCORED, SHAPE, TRAINED, config
from tests.conftest import ROOT

pytestmark = pytest.mark.benchmark
BLOCKS = 2, 4


def measured(blocks: int, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.resident", str(blocks), dtype]
    # Freed memory goes back at once, so that what is resident is what is in use, as on a card.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def predicted(blocks: int, dtype: str) -> dict[str, float]:
    """The same phases as :mod:`fpbench.runs.memory` counts them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        architecture: Any = AutoModelForCausalLM.from_config(config(blocks))
    read = Footprint(architecture, Loading("cpu", dtype, token_budget=READ[0] * READ[1]))
    scored = Footprint(architecture, Loading("cpu", dtype, token_budget=SCORED[0] * SCORED[1]))
    trained = Footprint(architecture, Loading("cpu", dtype), TRAINED[1])
    # Without the optimiser's two moments: half of what a trained number takes.
    adapters = trained.training(RANK, TRAINED[0]).fixed / 2
    tokens = TRAINED[0] * TRAINED[1]
    return {
        "weights": read.weights,
        "copies": read.weights,
        "read": read.reading(READ[0] * READ[1]),
        "scored": scored.scoring(walking=False).device.passing,
        "trained": adapters + trained.activations(tokens, False) + trained.answers(tokens),
        "trained twice computed": adapters + trained.activations(tokens, True) + trained.answers(tokens),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_three_billion_parameters_from_two_and_four_blocks(dtype: str) -> None:
    """Prints what was measured, what the estimate says, and both for all blocks; holds the estimate to 30 %."""
    few, more = (measured(blocks, dtype) for blocks in BLOCKS)
    said = [predicted(blocks, dtype) for blocks in BLOCKS]
    whole = predicted(int(SHAPE["num_hidden_layers"]), dtype)  # type: ignore[call-overload]
    print(f"\n{dtype}, MiB: measured (estimated)")
    print("| phase | 2 blocks | 4 blocks | 28 blocks, extrapolated |\n|---|---|---|---|")
    for name in few:
        if name not in more:
            print(f"| {name} | {few[name] / MIB if few[name] > 1000 else few[name]:.1f} | | |")
            continue
        slope = (more[name] - few[name]) / (BLOCKS[1] - BLOCKS[0])
        line = more[name] + slope * (int(SHAPE["num_hidden_layers"]) - BLOCKS[1])  # type: ignore[call-overload]
        figures = [(few[name], said[0]), (more[name], said[1]), (line, whole)]
        cells = [f"{size / MIB:.0f}" + (f" ({by[name] / MIB:.0f})" if name in by else "") for size, by in figures]
        print(f"| {name} | {' | '.join(cells)} |")
    for found, by in ((few, said[0]), (more, said[1])):
        for name, size in by.items():
            assert 0.7 * found[name] <= size <= 1.3 * found[name], (name, size / found[name])
