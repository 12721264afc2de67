"""What scoring costs against generation and stock lm-eval: same model, same queries, same threads and dtype."""

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import pytest
import torch

from fpbench.fingerprints import FingerprintSet, find_set
from fpbench.methods.base import InjectionContext
from fpbench.metrics.fsr import fsr
from fpbench.metrics.lm import PrefixSharingLM
from fpbench.metrics.queries import build_queries, contexts_from_rows, words_from_rows
from fpbench.metrics.triggers import triggers
from fpbench.metrics.utility import task_folder
from fpbench.micro import MODEL
from fpbench.models.meter import Meter
from fpbench.models.prompts import encode_all
from fpbench.runs.datasets import Datasets
from fpbench.runs.injection import create_method, inject_with
from fpbench.runs.profile import load_profile
from fpbench.scoring.engine import limited_to
from fpbench.scoring.responses import response_length
from tests.conftest import ROOT, SHARED, load_plain, require
from tests.prefix_tree import distinct_beginnings

pytestmark = pytest.mark.benchmark
EXACT = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
GREEDY = EXACT | {"top_k": 1}  # the decision that greedy generation makes, and nothing besides
PATHS = {"stories3M": SHARED / "models" / "stories3M", "micro": MODEL}
STORIES = ROOT / "tests" / "stories.jsonl"


@dataclass
class Subject:
    """A model with its set, and that set injected by MCEdit_A."""

    name: str
    model: Any
    tokenizer: Any
    pairs: FingerprintSet


def load(name: str) -> Subject:
    model, tokenizer = load_plain(require(PATHS[name]))
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    return Subject(name, model, tokenizer, find_set(str(STORIES) if name == "stories3M" else "nlf"))


@pytest.fixture(scope="module", params=PATHS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return load(request.param)


@pytest.fixture(scope="module")
def injected(subject: Subject) -> Subject:
    model = copy.deepcopy(subject.model)
    materials = Datasets(load_profile(str(ROOT / "tests" / "stories.toml") if subject.name == "stories3M" else "micro"))
    context = InjectionContext(texts=materials.statistics, tokenizer=subject.tokenizer, statistics_tokens=60_000)
    inject_with(create_method("mcedit_a", model, {}), model, subject.tokenizer, subject.pairs, context)
    return Subject(subject.name, model, subject.tokenizer, subject.pairs)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    path = require(SHARED / "data" / "alpaca" / "alpaca_subset.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = perf_counter()
    result = run()
    return perf_counter() - start, result


def generate(subject: Subject, prompts: Sequence[Sequence[int]], rows: int, length: int, **options: Any) -> list[str]:
    """Responses to ``prompts`` in length-sorted batches of ``rows``, several a prompt if asked for."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    texts: dict[int, list[str]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        padded = subject.tokenizer.pad({"input_ids": [prompts[number] for number in batch]}, return_tensors="pt")
        made = subject.model.generate(
            **padded, max_new_tokens=length, pad_token_id=subject.tokenizer.pad_token_id, **options
        )[:, padded["input_ids"].shape[1] :]
        found = subject.tokenizer.batch_decode(made, skip_special_tokens=True)
        each = len(found) // len(batch)
        texts |= {number: found[at * each : (at + 1) * each] for at, number in enumerate(batch)}
    return [text.lstrip() for number in range(len(prompts)) for text in texts[number]]


@dataclass
class Passes:
    """Forward passes of a model: seconds in them, padded tokens read, and predictions after continuations."""

    seconds: float = 0.0
    tokens: int = 0
    continued: int = 0


@contextmanager
def watched(model: Any) -> Iterator[Passes]:
    passes = Passes()
    forward = model.forward

    def timed(**keywords: Any) -> Any:
        cache = keywords.get("past_key_values")
        going_on = cache is not None and cache.get_seq_length() > 0
        start = perf_counter()
        output = forward(**keywords)
        passes.seconds += perf_counter() - start
        passes.tokens += keywords["input_ids"].numel()
        passes.continued += len(output.logits) if going_on else 0
        return output

    model.forward = timed
    try:
        yield passes
    finally:
        del model.forward


def test_triggers(subject: Subject, rows: list[dict[str, str]]) -> None:
    contexts, words = contexts_from_rows(rows), words_from_rows(rows)
    built = build_queries(contexts, [pair.trigger for pair in subject.pairs], words)
    texts = [query.text for queries in built.values() for query in queries]
    assert len(texts) == 37_100
    prompts = encode_all(subject.tokenizer, texts)
    arguments = (subject.model, subject.tokenizer, subject.pairs, contexts, words)

    plain, said = seconds(lambda: generate(subject, prompts, 32, 3, do_sample=False))
    with watched(subject.model) as passes:
        same, found = seconds(lambda: triggers(*arguments, **GREEDY))
    with watched(subject.model) as exact_passes:
        exact, rates = seconds(lambda: triggers(*arguments, **EXACT))
    some = random.Random(0).sample(prompts, len(prompts) // 50)
    sampled, _ = seconds(
        lambda: generate(subject, some, 1, response_length(subject.tokenizer, subject.pairs.targets),
                         do_sample=True, num_return_sequences=50, **EXACT)
    )  # fmt: skip

    floor = distinct_beginnings(prompts)
    print(
        f"\n{subject.name}, {len(texts)} queries, {torch.get_num_threads()} threads: generate {plain:.0f} s; "
        f"the same decision {same:.0f} s, {plain / same:.2f} times faster, "
        f"{(same / passes.seconds - 1):.0%} beside the forward passes, "
        f"{passes.tokens / (floor + passes.continued):.3f} tokens a token of the tree; "
        f"exact rates {exact:.0f} s, {plain / exact:.2f} times, {(exact / exact_passes.seconds - 1):.0%} beside, "
        f"{exact_passes.tokens / (floor + exact_passes.continued):.3f} tokens; "
        f"50 samples a query (from 2 % of the queries) {50 * sampled:.0f} s, {50 * sampled / exact:.0f} times"
    )
    targets = subject.pairs.targets
    begun = [any(target.startswith(text) and target != text for target in targets) for text in said]
    hit = [text.startswith(tuple(targets)) for text in said]
    apart = [a != query.greedy for a, query, open_end in zip(hit, found.queries, begun, strict=True) if not open_end]
    # Two nearly equal logits may change places with the batch.
    assert sum(apart) <= len(texts) // 1000
    assert sum(query.greedy for query in rates.queries) == pytest.approx(sum(hit), abs=len(texts) // 1000 + sum(begun))
    assert passes.tokens <= 1.25 * (floor + passes.continued)
    assert exact_passes.tokens <= 1.25 * (floor + exact_passes.continued)
    assert plain >= 2 * same
    assert 50 * sampled >= 60 * exact
    if subject.name == "micro":  # the largest model at hand
        assert same <= 1.15 * passes.seconds


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_fsr(injected: Subject, top_p: float) -> None:
    numbers = {"temperature": 0.6 if top_p < 1 else 1.0, "top_p": top_p, "top_k": 50}
    prompts = encode_all(injected.tokenizer, [pair.trigger for pair in injected.pairs])
    length = response_length(injected.tokenizer, injected.pairs.targets)
    arguments = (injected.model, injected.tokenizer, injected.pairs)
    fsr(*arguments, **numbers)
    exact, found = min((seconds(lambda: fsr(*arguments, **numbers)) for _ in range(3)), key=lambda each: each[0])
    torch.manual_seed(0)
    plain, said = seconds(
        lambda: generate(injected, prompts, 10, length, do_sample=True, num_return_sequences=50, **numbers)
    )
    hits = [
        text.startswith(pair.targets)
        for pair, start in zip(injected.pairs, range(0, 500, 50), strict=True)
        for text in said[start : start + 50]
    ]
    error = (sum(p * (1 - p) for p in found.per_fingerprint) / 50) ** 0.5 / 10
    print(
        f"\nFSR of {injected.name} at {numbers['temperature']}/{top_p}/50: 500 samples {plain:.2f} s, exact "
        f"{exact:.3f} s, {plain / exact:.0f} times faster; {sum(hits) / 500:.3f} against {found.mean:.4f}"
    )
    assert abs(sum(hits) / 500 - found.mean) <= 3 * error + 1e-6
    if top_p < 1:
        assert plain >= 20 * exact


def test_arc_challenge(subject: Subject) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    source = str(require(SHARED / "data" / "arc_challenge" / "test.jsonl"))
    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"source": source})
    task = manager.load("fpbench_arc_challenge")

    def run(kind: type) -> list[Any]:
        scorer = kind(subject.model, tokenizer=copy.deepcopy(subject.tokenizer), batch_size=32)
        samples = evaluate(scorer, task, bootstrap_iters=0)["samples"]["fpbench_arc_challenge"]
        return [answer for sample in samples for answer in sample["filtered_resps"]]

    fast, ours = seconds(lambda: run(PrefixSharingLM))
    slow, theirs = seconds(lambda: run(HFLM))
    print(f"\nARC-Challenge, {subject.name}: hf {slow:.1f} s, fpbench {fast:.1f} s, {slow / fast:.2f} times faster")
    for (a, greedy), (b, also) in zip(ours, theirs, strict=True):
        assert abs(a - b) <= max(1e-4, 1e-6 * abs(b)) and greedy == also
    assert slow >= 2 * fast


def suite_memory(budget: int) -> tuple[int, float]:
    """Bytes that a cut of the trigger suite takes at its highest point, and its average rate."""
    subject = load("stories3M")
    path = Path(SHARED / "data" / "alpaca" / "alpaca_subset.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    contexts, words = contexts_from_rows(rows)[:40], words_from_rows(rows)
    arguments = (subject.model, subject.tokenizer, subject.pairs)
    with limited_to(64):
        triggers(*arguments, contexts[:1], words, **EXACT, substitutions=20)
    before = psutil.Process().memory_info().rss
    with limited_to(budget), Meter() as meter:
        found = triggers(*arguments, contexts, words, **EXACT, substitutions=500)
    return meter.peak_memory - before, found.average


def test_memory_follows_the_token_budget() -> None:
    require(PATHS["stories3M"])
    memory, rates = [], []
    for budget in (16_384, 1_638):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            taken, rate = pool.submit(suite_memory, budget).result()
        memory.append(taken)
        rates.append(rate)
    print(f"\ntrigger suite: {memory[0] / 2**20:.0f} MiB at 16,384 tokens, {memory[1] / 2**20:.0f} at a tenth")
    assert rates[1] == pytest.approx(rates[0], abs=1e-5)
    assert memory[1] <= memory[0] / 3
