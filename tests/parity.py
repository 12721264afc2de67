"""Recorded runs of the reference implementations, and where agreement with them ends.

The tests of a method run every set ``<method>/<set>/`` in the folder that FPBENCH_PARITY names (by default
``../shared/parity``, whose README says what each array is) on the model beside them. What a set asks for and fpbench
does not implement fails by name. Where the reference itself is at fault, this is what the tests do:

AlphaEdit
    * The reference tokenises the target on its own. With the SentencePiece tokenizer (``sp``) it gains a leading "▁",
      predicted *before* the lookup token, where δ cannot reach; fpbench's own labels never have it (``encode_pair``).
      The numbers are compared on the recorded labels; that ours are these without the stray "▁" is a test of its own.
    * It samples its context templates from the model (the original repository keeps a literal BOS in them): injected as
      recorded, not sampled again.
    * It keeps the projector under one file name and the keys of earlier runs in a global; both would only show in a
      second run inside one process and have no counterpart here.
    * It solves a d × d system in float32, fpbench an n × n system in float64: ΔW agrees to 1e-3, no closer. A second
      batch therefore starts from the recorded weights of the first.

RIA, Wanda
    * ‖X_j‖² is divided by the number of *sequences*, not tokens, and the whole-matrix mask takes ⌊ratio · size⌋ + 1
      weights. fpbench does both. Wanda and the per-row comparison are no conditions of fpbench; the test computes their
      scores and masks on fpbench's activations.
    * Masks must be equal bit for bit given the recorded norms. fpbench's norms differ from these in the last float32
      bit, which may swap two weights at the threshold of a matrix: that much is allowed from its own norms.
    * The references run in float16 on a GPU; the recordings, and the comparison, in float32.

tinyMMLU
    * The reference stops its search where a gradient by finite differences falls below 1e-5; that place depends on the
      processor and lies up to 1e-6 in p-IRT from the optimum, which fpbench computes with the exact gradient. Answers
      that are all right or all wrong have no optimum: the estimates are compared to 1e-4 there, and θ not at all.
    * The recorded item parameters are synthetic: the estimator is checked, not published scores.

lm-eval
    * Nothing: fpbench calls the same library. The recordings scored one sequence at a time, fpbench in batches, which
      moves a log-likelihood by 1e-6 and that of a page, a float32 sum over thousands of tokens, by up to 1e-7 of it.

RLEdit
    * The L2 regulariser has no gradient, locality is propagated through the un-edited weights and accumulated gradients
      are clipped at every step (docs/methods.md §2.4): ``mode = "faithful"`` does all three, and is what is compared.
    * The running variance of a single token is NaN; fpbench refuses such a batch.
    * It solves d × d systems in float32, fpbench n × n in float64: shifts agree to 1e-4.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import PARITY

MODEL = PARITY / "model"
INPUTS = "inputs.safetensors"


@dataclass(frozen=True)
class Recording:
    """One recorded set."""

    folder: Path

    @cached_property
    def inputs(self) -> dict[str, Any]:
        return self._read("inputs")

    @cached_property
    def outputs(self) -> dict[str, Any]:
        return self._read("outputs")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs, intermediate values and outputs; their names do not collide."""
        parts = (self.folder / f"{part}.safetensors" for part in ("inputs", "intermediates", "outputs"))
        return {name: value for part in parts if part.is_file() for name, value in load_file(part).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def implemented(self, what: str, found: Any, known: Any) -> None:
        """Fail if the set asks for something that fpbench does not implement."""
        if found not in known:
            pytest.fail(f"{self.folder}: {what} is {found!r}, fpbench implements {', '.join(map(repr, known))}")

    def _read(self, part: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / f"{part}.json").read_text(encoding="utf-8"))
        return content


def recordings(method: str, folder: Path = PARITY) -> list[Recording]:
    """Every set of a method, by name."""
    return [Recording(path.parent) for path in sorted((folder / method).glob(f"*/{INPUTS}"))]


def sets(method: str, folder: Path = PARITY) -> list[Any]:
    """Every set of a method as a pytest parameter; one that skips and says why, if there is none.

    A folder that FPBENCH_PARITY names and that holds no set of any method stops the collection: it is a mistake.
    """
    found = [pytest.param(recording, id=recording.folder.name) for recording in recordings(method, folder)]
    if not found and folder.is_dir() and "FPBENCH_PARITY" in os.environ and not any(folder.glob(f"*/*/{INPUTS}")):
        pytest.fail(f"FPBENCH_PARITY names {folder}, which holds no set <method>/<set>/{INPUTS}", pytrace=False)
    reason = f"needs {folder / method}/<set>/{INPUTS}, which is not here"
    return found or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
