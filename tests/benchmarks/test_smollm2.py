"""What a real model costs against the plain way of doing the same: CPU time of one thread, both sides in one run.

Predictions were written down before measuring; README.md has both, and the floors.
"""

import copy
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor

from fpbench.fingerprints import find_set
from fpbench.methods import rledit, trajectory
from fpbench.methods.alphaedit import continuations
from fpbench.methods.base import InjectionContext
from fpbench.methods.hyperparameters import defaults
from fpbench.methods.null_space import WINDOW, KeyStatistics, second_moment, text_windows
from fpbench.methods.partial_forward import Row, pad
from fpbench.methods.trajectory import Batch, Predictions
from fpbench.metrics.fsr import fsr
from fpbench.metrics.queries import contexts_from_rows, words_from_rows
from fpbench.metrics.triggers import triggers
from fpbench.models import training
from fpbench.models.layout import layout, watched
from fpbench.models.meter import Meter, no_progress
from fpbench.models.prompts import Example, encode
from fpbench.models.training import LoRAConfig, Tokenised, adapter, all_weights, answer_loss, tokenise, train_lora
from fpbench.modifications.finetune import instruction
from fpbench.runs.injection import create_method, inject_with
from fpbench.scoring.engine import has_bfloat16_products, log_likelihoods
from tests.benchmarks import plain
from tests.benchmarks.plain import padded
from tests.benchmarks.smollm2 import (
    WIKIPEDIA,
    block_operations,
    cpu_seconds,
    load,
    product_rate,
)
from tests.conftest import SHARED, require

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


def one_by_one(model: Any, tokenizer: Any, words: Sequence[str], *given: int) -> list[str]:
    return [plain.continuation(model, tokenizer, word, *given) for word in words]


def test_contexts() -> None:
    """Five contexts of ten tokens, sampled at once with a cache, against one by one with whole passes."""
    words = defaults("alphaedit", "small")["prefixes"]
    for dtype in ("float32", "bfloat16"):
        given = (*load(dtype), words, 10, 5, 42)
        naive, expected = cpu_seconds(partial(one_by_one, *given))
        ours, found = cpu_seconds(partial(continuations, *given))
        print(f"contexts, {dtype}: {naive:.2f} s, {ours:.2f} s, {naive / ours:.1f} times")
        assert found == expected
        assert naive / ours >= 3


@torch.no_grad()
def plain_window(model: Any, window: list[int]) -> float:
    """Σ −log p of a window, by one call of the model and one of log_softmax."""
    log_p = model(torch.tensor([window[:-1]]), use_cache=False).logits[0].float().log_softmax(-1)
    return -float(log_p.gather(1, torch.tensor(window[1:])[:, None]).double().sum())


@needs_bfloat16
def test_windows() -> None:
    """A window of text costs no more than the library takes for it, at either length."""
    model, tokenizer = load("bfloat16")
    ids = encode(tokenizer, require(WIKIPEDIA).read_text(encoding="utf-8")[:60_000])
    for length in (2048, 8192):
        window = ids[:length]
        log_likelihoods(model, [window[:64]], [63])
        slow, expected = cpu_seconds(partial(plain_window, model, window))
        fast, [(found, _)] = cpu_seconds(partial(log_likelihoods, model, [window], [length - 1]))
        print(f"window of {length}: plain {slow:.1f} s, fpbench {fast:.1f} s, {slow / fast:.2f} times")
        assert -sum(found) == pytest.approx(expected, rel=1e-3)
        assert slow >= 0.9 * fast


@needs_bfloat16
def test_scoring() -> None:
    lines = require(SHARED / "data" / "alpaca" / "alpaca_subset.jsonl").read_text(encoding="utf-8").splitlines()
    rows, pairs = [json.loads(line) for line in lines], find_set("nlf")
    contexts, words = contexts_from_rows(rows)[:3], words_from_rows(rows)
    model, tokenizer = load("bfloat16")
    context = InjectionContext(tokenizer=tokenizer, texts=[require(WIKIPEDIA).read_text(encoding="utf-8")[:40_000]])
    context.statistics_tokens = 4096
    inject_with(create_method("mcedit_a", model, {"layers": tuple(BLOCKS)}), model, tokenizer, pairs, context)
    exact = copy.deepcopy(model).float()  # the very same weights

    def suite(subject: Any) -> int:
        return len(triggers(subject, tokenizer, pairs, contexts, words, **DECODING, substitutions=30).queries)

    responses = [fsr(each, tokenizer, pairs, **DECODING).per_fingerprint for each in (model, exact)]
    fast, queries = cpu_seconds(lambda: suite(model))
    slow, _ = cpu_seconds(lambda: suite(exact))
    moved = max(abs(a - b) for a, b in zip(*responses, strict=True))
    mean = sum(a - b for a, b in zip(*responses, strict=True)) / len(pairs)
    products = product_rate(torch.bfloat16) / product_rate(torch.float32)
    print(
        f"\nscoring of {queries} queries: float32 {slow:.1f} s, bfloat16 {fast:.1f} s, {slow / fast:.2f} times; "
        f"products alone {products:.1f} times; FSR moves by {abs(mean):.1e}, of a fingerprint by at most {moved:.1e}"
    )
    assert slow >= 2.5 * fast
    # What is not decided moves with the rounding of the blocks; a head in float32 does not change that.
    assert abs(mean) <= 5e-3
    assert all(abs(a - b) <= 5e-3 for a, b in zip(*responses, strict=True) if min(b, 1 - b) <= 1e-3)


FINE_TUNED = LoRAConfig(2e-4, epochs=1, batch_size=8, rank=32, alpha=64)


def alpaca(count: int) -> list[Example]:
    lines = require(SHARED / "data" / "alpaca" / "alpaca_subset.jsonl").read_text(encoding="utf-8").splitlines()
    return [instruction(json.loads(line)) for line in lines[:count]]


def plain_training(model: Any, sequences: Sequence[Tokenised]) -> None:
    """Train in batches as they come: float32, all logits of a padded batch, everything kept for the way back."""
    with torch.enable_grad(), adapter(model, FINE_TUNED) as weights:
        optimiser = torch.optim.AdamW(weights, lr=FINE_TUNED.learning_rate, weight_decay=0.0)
        for start in range(0, len(sequences), FINE_TUNED.batch_size):
            batch = sequences[start : start + FINE_TUNED.batch_size]
            given = padded([ids for ids, _ in batch])
            labels = given["input_ids"].clone()
            for row, (ids, prompt) in enumerate(batch):
                labels[row, :prompt] = labels[row, len(ids) :] = -100
            optimiser.zero_grad()
            model(**given, labels=labels, use_cache=False).loss.backward()
            optimiser.step()


def training_cost(plain: bool, count: int) -> tuple[float, int, int]:
    """CPU seconds, bytes at the highest point and tokens of one way of training, in this process."""
    model, tokenizer = load("float32" if plain else "bfloat16")
    sequences, _, _ = tokenise(model, tokenizer, alpaca(count))
    with Meter() as meter:
        if plain:
            taken, _ = cpu_seconds(lambda: plain_training(model, sequences))
        else:
            examples = alpaca(count)
            taken, _ = cpu_seconds(
                lambda: train_lora(model, tokenizer, examples, FINE_TUNED, seed=1, progress=no_progress)
            )
    return taken, meter.peak_memory, sum(len(ids) for ids, _ in sequences)


@needs_bfloat16
def test_fine_tuning() -> None:
    model, _ = load("bfloat16")  # skips where there is none, before a process is started
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        fast, memory, tokens = pool.submit(training_cost, False, 16).result()
        slow, plain_memory, _ = pool.submit(training_cost, True, 16).result()
    # Forwards and, for the activations alone, backwards; the head at half of the tokens.
    operations = 2 * (len(layout(model).blocks) * block_operations(model) + layout(model).head.weight.numel())
    floor = tokens * operations / product_rate(torch.bfloat16)
    print(
        f"\nfine-tuning on {tokens} tokens: plain {tokens / slow:.0f} tokens a second, {plain_memory / 2**30:.1f} GiB; "
        f"fpbench {tokens / fast:.0f}, {memory / 2**30:.1f} GiB, {slow / fast:.1f} times; "
        f"floor {floor:.1f} s of {fast:.1f} s"
    )
    assert slow >= 3 * fast
    assert memory <= 2.5 * 2**30


def full_step(sequences: Sequence[Tokenised], mixed: bool) -> tuple[float, float]:
    """CPU seconds of a step of full fine-tuning, and its loss; products in float32 unless they are mixed."""
    model, _ = load("bfloat16")
    with all_weights(model) as weights:
        if not mixed:
            training._LEARNING.discard(model)
        optimiser = torch.optim.SGD(weights, lr=1e-3)

        def step() -> float:
            loss, _ = answer_loss(model, sequences)
            loss.backward()
            optimiser.step()
            return loss.item()

        step()
        return cpu_seconds(step)


@needs_bfloat16
def test_full_fine_tuning() -> None:
    _, tokenizer = load("bfloat16")
    sequences, _, _ = tokenise(load("bfloat16")[0], tokenizer, alpaca(8))
    (slow, exact), (fast, found) = full_step(sequences, mixed=False), full_step(sequences, mixed=True)
    print(f"\na step of all weights: {slow:.1f} s in float32, {fast:.1f} s in bfloat16, {slow / fast:.1f} times")
    assert found == pytest.approx(exact, rel=0.02)
    assert slow >= 1.5 * fast


class WholePredictions(Predictions):
    """Every row whole and by itself, padded to the longest, through all blocks, in every pass."""

    def logits(self, batch: Batch) -> Tensor:
        hidden = self.model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        return self.parts.head(hidden[batch.reads]).float()


class Forgetful(dict[Any, Any]):
    """A dictionary that nothing can be put into."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


packed_rows = Batch.of


def padded_rows(rows: Sequence[Row], device: Any) -> Batch:
    """A batch as the reference has it: rows that begin alike, as candidates do, are read one by one."""
    packed = packed_rows(rows, device)
    reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
    return replace(
        packed, ids=pad([row.ids for row in rows], device), reads=tuple(torch.tensor(reads).T), depths=None, seen=None
    )


def test_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the 80 steps of MCEdit_R: training on each and editing with each; later ones cost half of the first."""
    model, tokenizer = load("float32")
    base = copy.deepcopy(model)
    lines = require(SHARED / "data" / "zsre" / "eval_1k.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    rows = [json.loads(line) for line in lines]
    context = InjectionContext(
        tokenizer=tokenizer, pairs=[Example(row["loc"].removeprefix("nq question: "), row["loc_ans"]) for row in rows]
    )
    pairs, method = find_set("nlf"), create_method("mcedit_r", model, {"steps": 2})
    step = method.step(model, tokenizer, pairs, context)
    fast, _ = cpu_seconds(lambda: method.inject(model, tokenizer, pairs, context))
    other = copy.deepcopy(base)
    monkeypatch.setattr(trajectory, "Predictions", WholePredictions)
    monkeypatch.setattr(trajectory, "_Known", partial(trajectory._Known, Forgetful(), Forgetful()))
    monkeypatch.setattr(rledit.Batch, "of", padded_rows)
    slow, _ = cpu_seconds(lambda: method.inject(other, tokenizer, pairs, context))
    moved = [
        apart(
            model.get_parameter(name) - base.get_parameter(name), other.get_parameter(name) - base.get_parameter(name)
        )
        for name in method.edited(base)
    ]
    parts = layout(base)
    first = Predictions(base, method.modules(base)).first
    # Edits twice with their gradient, once to learn and once to edit; unrelated pairs once; the head where it is read.
    edits, unrelated = step.edits[0].batch, step.unrelated[0]
    places = 2 * (2 * edits.ids.numel() + unrelated.ids.numel())
    above = 2 * (len(parts.blocks) - first) * block_operations(base)
    reads = 2 * (2 * len(edits.distinct[0][0]) + len(unrelated.distinct[0][0]))
    floor = (places * above + reads * 4 * parts.head.weight.numel()) / product_rate(torch.float32)
    print(
        f"\ntwo steps of MCEdit_R: plain {slow:.1f} s, fpbench {fast:.1f} s, {slow / fast:.1f} times, "
        f"floor {floor:.1f} s; ΔW differs by {max(moved):.1e}"
    )
    assert max(moved) <= 1e-3
    assert slow >= 2.5 * fast
