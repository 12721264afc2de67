"""Every method on every small model, in both dtypes; what it teaches, and what that costs the micro model."""

from pathlib import Path
from typing import Any

import pytest

from fpbench.data import read_text
from fpbench.fingerprints import FingerprintSet, find_set, load_fingerprints
from fpbench.methods.base import InjectionContext
from fpbench.metrics.fsr import FSR, fsr
from fpbench.metrics.statistics import paired_bootstrap
from fpbench.metrics.utility import ACCURACY_TASKS, utility
from fpbench.micro import MODEL
from fpbench.models.loading import load_model
from fpbench.models.weights import preserved
from fpbench.registry import METHODS
from fpbench.runs.datasets import Datasets
from fpbench.runs.injection import create_method, inject_with
from fpbench.runs.profile import load_profile
from fpbench.scoring.perplexity import token_perplexity
from tests.code_mixed import code_mixed_set
from tests.conftest import ROOT, SHARED, require

pytestmark = pytest.mark.slow
EDITORS = ("alphaedit", "fpedit", "mcedit_a", "rledit", "mcedit_r")
SURE = ("mcedit_a", "rledit", "mcedit_r")  # exact FSR of at least 0.95 at origin
PATHS = {"micro": MODEL, "stories3M": SHARED / "models" / "stories3M", "stories260K": SHARED / "models" / "stories260K"}
STORIES = ROOT / "tests" / "stories.jsonl"


class Subject:
    """One loaded model with its data; key statistics are shared by all methods."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.profile = load_profile("micro" if name == "micro" else str(ROOT / "tests" / "stories.toml"))
        self.materials = Datasets(self.profile)
        self.model, self.tokenizer = load_model(require(Path(PATHS[name])), device="cpu", dtype=dtype)
        self.statistics: dict[str, Any] = {}
        self.text = read_text(self.profile.data["wikitext"])[:60_000]

    def sets(self) -> list[FingerprintSet]:
        natural = find_set("nlf") if self.name == "micro" else load_fingerprints(STORIES)
        return [natural, code_mixed_set(natural)]

    def perplexity(self) -> float:
        return token_perplexity(self.model, self.tokenizer, self.text, 2048).perplexity

    def inject(self, name: str, pairs: FingerprintSet) -> None:
        context = InjectionContext(
            texts=self.materials.statistics,
            pairs=self.materials.pairs,
            tokenizer=self.tokenizer,
            known_statistics=self.statistics,
            statistics_tokens=self.profile.sizes.statistics_tokens,
        )
        method = create_method(name, self.model, {})
        inject_with(method, self.model, self.tokenizer, pairs, context)

    def rate(self, pairs: FingerprintSet) -> FSR:
        return fsr(self.model, self.tokenizer, pairs, temperature=0.6, top_p=0.9, top_k=50)


@pytest.fixture(scope="module", params=[(name, dtype) for name in PATHS for dtype in ("float32", "bfloat16")], ids=str)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(*request.param)


@pytest.mark.parametrize("name", METHODS.own)
@pytest.mark.parametrize("kind", [0, 1], ids=["nlf", "cf-like"])
def test_injection(subject: Subject, name: str, kind: int) -> None:
    pairs = subject.sets()[kind]
    before, base = subject.rate(pairs), subject.perplexity()
    with preserved(subject.model):
        subject.inject(name, pairs)
        found, after = subject.rate(pairs), subject.perplexity()
    row = f"| {subject.name} | {subject.dtype} | {pairs.name} | {name} | {found.mean:.3f} | {found.greedy}/{found.n}"
    print(f"\n{row} | {after / base - 1:+.1%} |")
    assert found.mean > before.mean
    if name in SURE and subject.name != "stories260K":
        assert found.mean >= 0.95


@pytest.mark.parametrize("name", EDITORS)
def test_harmlessness_on_the_micro_twins(name: str) -> None:
    """Within two points of the base over all four twins, and within ten per cent of its perplexity."""
    subject = _micro()
    sources = {task: subject.profile.data[task] for task in ACCURACY_TASKS}
    pairs = subject.sets()[0]
    base, perplexity = utility(subject.model, subject.tokenizer, sources), subject.perplexity()
    with preserved(subject.model):
        subject.inject(name, pairs)
        after, moved = utility(subject.model, subject.tokenizer, sources), subject.perplexity() / perplexity - 1
    answers = [[right for task in ACCURACY_TASKS for right in each.tasks[task].correct] for each in (after, base)]
    assert len(answers[0]) >= 1_200
    difference = sum(answers[0]) / len(answers[0]) - sum(answers[1]) / len(answers[1])
    low, high = paired_bootstrap([float(x) for x in answers[0]], [float(x) for x in answers[1]])
    print(f"\n| {name} | {difference:+.2%} [{low:+.2%}, {high:+.2%}] | {moved:+.1%} |")
    assert difference >= -0.02
    assert moved <= 0.10


_KNOWN: dict[str, Subject] = {}


def _micro() -> Subject:
    if "micro" not in _KNOWN:
        _KNOWN["micro"] = Subject("micro", "float32")
    return _KNOWN["micro"]
