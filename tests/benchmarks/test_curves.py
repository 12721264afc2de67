"""What a curve of doses costs beside its most expensive point: fine-tuning, RIA and merging, as a run applies them.

CPU time of one thread, both sides in one run. Predicted: fine-tuning passes the smaller doses on its way, and pays for
them with copies of the update and of the weights: 1.1. RIA prunes each block with what the pruned blocks before it put
out, so that a dose shares its windows with others and nothing else: as many times as there are doses. A merge shares
nothing either, and costs little beside scoring: at most a fifth of a window of WikiText-2, of which a price reads four.
"""

import copy
from typing import Any

import pytest
import torch

from fpbench.data import read_rows, read_texts
from fpbench.models.weights import preserved, weights
from fpbench.modifications.base import ModificationContext
from fpbench.registry import MODIFICATIONS
from tests.benchmarks.smollm2 import cpu_seconds, load

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(torch.get_num_threads() != 1, reason="set OMP_NUM_THREADS=1: CPU time of several threads adds"),
]


def curve_seconds(name: str, doses: list[float], model: Any, tokenizer: Any, **settings: Any) -> float:
    """Return the CPU time of applying some doses, each to the weights of the checkpoint, which are then put back."""
    given = settings.pop("given")
    context = ModificationContext(doses={(name,): doses}, **given)
    originals = weights(model)

    def run() -> None:
        for dose in doses:
            with preserved(model, originals):
                MODIFICATIONS.get(name)(dose, **settings).apply(model, tokenizer, context)

    return cpu_seconds(run)[0]


@pytest.mark.parametrize(
    ("name", "doses", "settings", "most"),
    [
        ("finetune_alpaca", [10, 20, 40, 80], {"learning_rate": 1e-3, "rows": 200}, 1.3),
        ("ria", [0.2, 0.3, 0.4, 0.5], {"samples": 8}, 4.2),
    ],
)
def test_a_curve_beside_its_most_expensive_point(
    micro: tuple[Any, Any], name: str, doses: list[float], settings: dict[str, Any], most: float
) -> None:
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    rows, texts = read_rows("bundled:alpaca.jsonl"), read_texts("bundled:text.jsonl")
    given = {"given": {"rows": {"alpaca": rows}, "calibration": texts}} | settings
    curve_seconds(name, doses[:1], model, tokenizer, **given)  # what is loaded and tried out once
    point = curve_seconds(name, doses[-1:], model, tokenizer, **given)
    curve = curve_seconds(name, doses, model, tokenizer, **given)
    print(f"\n{name}: four doses {curve:.2f} s, the largest alone {point:.2f} s: {curve / point:.2f} times")
    assert curve / point <= most


def test_a_merge_beside_a_window_of_text() -> None:
    model, tokenizer = load("bfloat16")
    base, draw, doses = weights(model), torch.Generator().manual_seed(0), [0.1, 0.3, 0.5, 0.7]
    with torch.no_grad():
        for block in model.model.layers[9:21]:
            weight = block.mlp.down_proj.weight
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=draw)
    given = {"given": {"base": base}}
    curve_seconds("merge", doses[:1], model, tokenizer, **given)
    point, curve = (curve_seconds("merge", each, model, tokenizer, **given) for each in (doses[-1:], doses))
    ids = torch.randint(5, 40_000, (1, 2048), generator=draw)
    window, _ = cpu_seconds(lambda: model(ids, use_cache=False))
    print(f"\nmerge: four doses {curve:.2f} s, one {point:.2f} s ({curve / point:.1f} times); a window {window:.2f} s")
    assert point <= window / 5
