"""Key statistics in the folder of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fpbench.methods.base import InjectionContext
from fpbench.runs.injection import Spectra

NAMES = ["model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"]
IDENTITY = {"model": "abc", "dtype": "float32", "text": {"statistics": "def"}, "tokens": 600}


@pytest.fixture
def context(stories: Any, tmp_path: Path) -> Callable[..., InjectionContext]:
    """Makes what each new run of one folder would hand to its methods."""

    def make(**changes: Any) -> InjectionContext:
        known = Spectra(tmp_path / "statistics", IDENTITY | changes)
        texts = ["Once upon a time there was a bird. " * 30] * 3
        return InjectionContext(texts=texts, tokenizer=stories[1], statistics_tokens=600, known_statistics=known)

    return make


def test_spectra_are_computed_once_for_all_runs(stories: Any, context: Callable[..., InjectionContext]) -> None:
    first, second = context(), context()
    computed = first.statistics(stories[0], NAMES[:1])
    read = second.statistics(stories[0], NAMES)
    assert torch.equal(read[NAMES[0]].eigenvectors, computed[NAMES[0]].eigenvectors)
    assert "statistics" in first.seconds and "statistics" in second.seconds
    third = context()
    assert list(third.statistics(stories[0], NAMES)) == NAMES
    assert third.seconds == {}  # all were there: the second run computed the second one
    assert third.statistics(stories[0], NAMES)[NAMES[0]].null_space(share=0.5).complement.shape == (512, 256)


@pytest.mark.parametrize("change", [{"model": "x"}, {"dtype": "bfloat16"}, {"text": {}}, {"tokens": 601}])
def test_other_spectra_are_not_taken_for_these(
    stories: Any, context: Callable[..., InjectionContext], change: dict[str, Any]
) -> None:
    context().statistics(stories[0], NAMES[:1])
    assert NAMES[0] in context().known_statistics
    assert NAMES[0] not in context(**change).known_statistics
    assert NAMES[1] not in context().known_statistics


def test_damaged_spectra_are_computed_again(
    stories: Any, context: Callable[..., InjectionContext], tmp_path: Path
) -> None:
    computed = context().statistics(stories[0], NAMES[:1])[NAMES[0]]
    (path,) = (tmp_path / "statistics").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    repaired = context()
    found = repaired.statistics(stories[0], NAMES[:1])[NAMES[0]]
    assert "statistics" in repaired.seconds
    assert torch.equal(found.eigenvectors, computed.eigenvectors)
    assert NAMES[0] in context().known_statistics
