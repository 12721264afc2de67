"""What every test of a method needs: fingerprints that stories3M's tokenizer knows, and an injection context."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fpbench.fingerprints import FingerprintSet, load_fingerprints
from fpbench.methods.base import InjectionContext
from fpbench.methods.null_space import KeyStatistics
from fpbench.models.prompts import Example
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def stories_set() -> FingerprintSet:
    return load_fingerprints(ROOT / "tests" / "stories.jsonl")


@pytest.fixture(scope="session")
def context(shared: Path, stories: tuple[Any, Any]) -> Callable[[], InjectionContext]:
    """Makes contexts that share one set of key statistics."""
    with (shared / "data" / "c4" / "c4_demo.jsonl").open() as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(40)]
    with (shared / "data" / "zsre" / "eval_1k.jsonl").open() as lines:
        rows = [json.loads(next(lines)) for _ in range(50)]
    pairs = [Example(row["src"], row["alt"]) for row in rows]
    known: dict[str, KeyStatistics] = {}

    def make() -> InjectionContext:
        return InjectionContext(
            texts=texts, pairs=pairs, tokenizer=stories[1], known_statistics=known, statistics_tokens=10_000
        )

    return make
