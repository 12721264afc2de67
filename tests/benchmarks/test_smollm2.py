"""What a real model costs against the plain way of doing the same: CPU time of one thread, both sides in one run.

Predictions were written down before measuring; README.md has both, and the floors.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fpbench.fingerprints import find_set
from fpbench.methods.base import InjectionContext
from fpbench.methods.null_space import WINDOW, KeyStatistics, second_moment, text_windows
from fpbench.metrics.fsr import fsr
from fpbench.models.layout import layout, watched
from fpbench.models.meter import no_progress
from fpbench.models.prompts import encode
from fpbench.runs.injection import create_method, inject_with
from tests.benchmarks.smollm2 import (
    WIKIPEDIA,
    block_operations,
    cpu_seconds,
    has_bfloat16_products,
    load,
    product_rate,
)
from tests.conftest import require

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(torch.get_num_threads() != 1, reason="set OMP_NUM_THREADS=1: CPU time of several threads adds"),
]
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16_products(), reason="this processor multiplies bfloat16 no faster than float32"
)
BLOCKS = range(13, 18)
DECODING = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def plain_moment(model: Any, documents: list[list[int]], blocks: range) -> list[Tensor]:
    """C of each block as the public implementations take it: whole documents, the whole network, full products."""
    projections = [layout(model).down_proj(block) for block in blocks]
    totals = [torch.zeros(each.in_features, each.in_features) for each in projections]

    def add(number: int, hidden: Tensor) -> None:
        keys = hidden.flatten(0, 1).float()
        totals[number] += keys.T @ keys

    with watched(projections, add):
        for document in documents:
            model(input_ids=torch.tensor([document]), use_cache=False, logits_to_keep=1)
    return [total / sum(map(len, documents)) for total in totals]


def alphaedit_fsr(tokenizer: Any, moments: dict[str, Tensor], tokens: int) -> Sequence[float]:
    """FSR by fingerprint of a float32 model that AlphaEdit edited with these second moments."""
    known = {name: KeyStatistics(*torch.linalg.eigh(moment), tokens, 1, 1) for name, moment in moments.items()}
    model, pairs = load("float32")[0], find_set("nlf")
    method = create_method("alphaedit", model, {"layers": tuple(BLOCKS)})
    inject_with(method, model, tokenizer, pairs, InjectionContext(tokenizer=tokenizer, known_statistics=known))
    return fsr(model, tokenizer, pairs, **DECODING).per_fingerprint


@needs_bfloat16
def test_key_statistics() -> None:
    tokens = 8192
    text = require(WIKIPEDIA).read_text(encoding="utf-8")[: 8 * tokens]
    exact, tokenizer = load("float32")
    model, _ = load("bfloat16")
    document = encode(tokenizer, text)[:tokens]
    windows = [list(window) for window in text_windows(tokenizer, tokenizer.decode(document), WINDOW)]
    names = [layout(model).down_proj_name(block) for block in BLOCKS]
    second_moment(model, names, windows[:1], no_progress)
    fast, found = cpu_seconds(lambda: second_moment(model, names, windows, no_progress))
    slow, _ = cpu_seconds(lambda: plain_moment(exact, [document], BLOCKS))
    same = [apart(found[name], each) for name, each in zip(names, plain_moment(model, windows, BLOCKS), strict=True)]
    in_float32 = dict(zip(names, plain_moment(exact, windows, BLOCKS), strict=True))
    rounding = [apart(found[name], in_float32[name]) for name in names]
    responses = [alphaedit_fsr(tokenizer, moments, tokens) for moments in (found, in_float32)]

    width = layout(model).down_proj(0).in_features
    forward = tokens * block_operations(model) * (BLOCKS[-1] + 1) / product_rate(torch.bfloat16)
    products = tokens * len(BLOCKS) * width**2 / product_rate(torch.float32)  # half of C, at two operations an entry
    print(
        f"\nkey statistics of {len(BLOCKS)} blocks, {tokens} tokens: plain {slow:.1f} s, fpbench {fast:.1f} s, "
        f"{slow / fast:.1f} times; floor {forward:.1f} + {products:.1f} s, {fast / (forward + products):.1f} times it; "
        f"60,000 tokens take {fast * 60_000 / tokens:.0f} s; C differs by {max(same):.1e}, from that of a "
        f"float32 model by {max(rounding):.1e}"
    )
    assert max(same) <= 1e-3 and max(rounding) <= 1e-2
    assert responses[0] == pytest.approx(responses[1], abs=5e-3)
    assert fast * 60_000 / tokens <= 60
    assert slow >= 4 * fast
