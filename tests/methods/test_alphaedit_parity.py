"""AlphaEdit against recorded runs of the reference, number by number (../shared/parity/README.md)."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from fpbench.methods.alphaedit import likelihood_and_divergence
from fpbench.methods.base import no_progress
from fpbench.methods.editing.objective import Row
from fpbench.methods.editing.statistics import KeyStatistics, second_moment
from fpbench.methods.editing.target_values import Descent, optimise
from fpbench.methods.editing.write import keys_and_values, write
from fpbench.models.layout import layout
from fpbench.models.prompts import encode
from tests.conftest import PARITY, load_plain

SETS = sorted((PARITY / "alphaedit").glob("*")) if PARITY.exists() else []
pytestmark = pytest.mark.skipif(not SETS, reason=f"needs parity fixtures in {PARITY}, which are not here")
TOKENIZERS = {"np": PARITY / "model" / "tokenizer_noprefix", "sp": PARITY / "model"}


@dataclass(frozen=True)
class Recording:
    """One tokenizer's run of one set."""

    tokenizer: str
    inputs: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{self.tokenizer}.{name}"]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return self.inputs["hyperparameters"]

    @property
    def layers(self) -> list[int]:
        return self.hyperparameters["layers"]

    def rows(self, prefix: str, requests: int) -> list[Row]:
        """The recorded sequences of ``requests`` requests: six to be learnt and one to be kept each."""
        rows = []
        for number in range(requests):
            part = f"{prefix}z.{number}."
            lengths = self[part + "attention_mask"].sum(1).tolist()
            lookups = self[part + "lookup"].tolist()
            sequences = self[part + "input_ids"].tolist()
            for index, labels in enumerate(self[part + "targets"].tolist()):
                positions = [t for t, label in enumerate(labels) if label != -100]
                tokens = [labels[t] for t in positions]
                rows.append(Row(number, sequences[index][: lengths[index]], lookups[index], positions, tokens))
            rows.append(Row(number, sequences[6][: lengths[6]], lookups[6], [lookups[6]]))
        return rows


def prompts(rows: list[Row]) -> list[list[list[int]]]:
    """The prompts that keys are taken from: every row with labels, up to its lookup token."""
    count = max(row.request for row in rows) + 1
    return [
        [list(row.ids[: row.lookup + 1]) for row in rows if row.request == number and row.labels]
        for number in range(count)
    ]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module", params=[(s, t) for s in SETS for t in TOKENIZERS], ids=lambda p: f"{p[0].name}-{p[1]}")
def recording(request: pytest.FixtureRequest) -> Recording:
    folder, tokenizer = request.param
    tensors = {
        name: value
        for part in ("inputs", "intermediates", "outputs")
        for name, value in load_file(folder / f"{part}.safetensors").items()
    }
    return Recording(tokenizer, json.loads((folder / "inputs.json").read_text()), tensors)


@pytest.fixture(scope="module")
def base() -> Any:
    return load_plain(PARITY / "model")[0]


@pytest.fixture(scope="module")
def documents(recording: Recording) -> list[list[int]]:
    offsets, ids = recording["doc_offsets"].tolist(), recording["doc_ids"].tolist()
    return [ids[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.fixture(scope="module")
def moments(recording: Recording, base: Any, documents: list[list[int]]) -> dict[int, Tensor]:
    names = [layout(base).down_proj_name(layer) for layer in recording.layers]
    found = second_moment(base, names, documents, no_progress)
    return dict(zip(recording.layers, (found[name] for name in names), strict=True))


@pytest.fixture(scope="module")
def statistics(moments: dict[int, Tensor], documents: list[list[int]]) -> dict[int, KeyStatistics]:
    tokens = sum(map(len, documents))
    return {layer: KeyStatistics(*torch.linalg.eigh(moment), tokens) for layer, moment in moments.items()}


def test_documents(recording: Recording, documents: list[list[int]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS[recording.tokenizer])
    texts = [recording.inputs["documents"][index] for index in recording.tensors["sampled_docs"].tolist()]
    limit = recording.inputs["max_document_tokens"]
    assert [encode(tokenizer, text)[:limit] for text in texts] == documents


def test_second_moments(recording: Recording, moments: dict[int, Tensor], documents: list[list[int]]) -> None:
    for layer in recording.layers:
        assert error(moments[layer], recording[f"C.{layer}"]) < 1e-6
        assert sum(map(len, documents)) == int(recording[f"C_count.{layer}"])


def test_projectors(recording: Recording, statistics: dict[int, KeyStatistics]) -> None:
    for layer in recording.layers:
        null_space = statistics[layer].null_space(threshold=recording.hyperparameters["nullspace_threshold"])
        projector = null_space.project(torch.eye(len(statistics[layer].eigenvalues)))
        assert error(projector, recording[f"P.{layer}"]) < 5e-5


@pytest.mark.parametrize("prefix", ["", "seq1."])
def test_target_values(recording: Recording, base: Any, prefix: str) -> None:
    requests = count(recording, prefix)
    found = values(recording, base, prefix, requests)
    for number in range(requests):
        assert error(found[:, number], recording[f"{prefix}z.{number}.v_star"]) < 1e-4


def values(recording: Recording, model: Any, prefix: str, requests: int) -> Tensor:
    """V* [h, n] by our own descent over the recorded sequences."""
    given = recording.hyperparameters
    rows = recording.rows(prefix, requests)
    objective = likelihood_and_divergence(rows, given["kl_factor"], given["v_weight_decay"], "cpu")
    descent = Descent(given["v_lr"], None, given["v_num_grad_steps"], given["clamp_norm_factor"], early_stop=0.05)
    v0, delta = optimise(model, recording.layers[-1], rows, objective, descent, no_progress)
    return (v0 + delta).T


def count(recording: Recording, prefix: str) -> int:
    """How many requests a run has; skips a run that was not recorded."""
    name = f"{recording.tokenizer}.{prefix}w.{recording.layers[0]}.K"
    if name not in recording.tensors:
        pytest.skip(f"no run {prefix!r} for tokenizer {recording.tokenizer!r}")
    return recording.tensors[name].shape[1]


def check_write(recording: Recording, model: Any, prefix: str, spectra: Any, earlier: Any = None) -> None:
    """Write the recorded V* into ``model`` and compare keys, residuals and updates, then the keys afterwards."""
    given, requests = recording.hyperparameters, count(recording, prefix)
    threshold = given["nullspace_threshold"]
    null_spaces = {layer: spectra[layer].null_space(threshold=threshold) for layer in recording.layers}
    sequences = prompts(recording.rows(prefix, requests))
    v_star = values(recording, model, prefix, requests)
    assert error(v_star, recording[f"{prefix}w.{recording.layers[0]}.V_star"]) < 1e-4
    done = write(model, recording.layers, sequences, v_star, null_spaces, given["L2"], earlier)
    for layer in recording.layers:
        assert error(done[layer].keys, recording[f"{prefix}w.{layer}.K"]) < 1e-5
        assert error(done[layer].residual, recording[f"{prefix}w.{layer}.R"]) < 1e-5
        assert error(done[layer].update, recording[f"{prefix}dW.{layer}"]) < 1e-3
        after, _ = keys_and_values(model, layer, recording.layers[-1], sequences)
        assert error(after, recording[f"{prefix}w.{layer}.K_after"]) < 1e-5


def test_write(recording: Recording, base: Any, statistics: dict[int, KeyStatistics]) -> None:
    check_write(recording, copy.deepcopy(base), "", statistics)


def test_two_batches_in_succession(recording: Recording, base: Any, statistics: dict[int, KeyStatistics]) -> None:
    model = copy.deepcopy(base)
    check_write(recording, model, "seq1.", statistics)
    # The second batch starts from the reference's weights: its float32 solve differs from ours by about 1e-5.
    for layer in recording.layers:
        weight = layout(model).down_proj(layer).weight
        weight.copy_(layout(base).down_proj(layer).weight + recording[f"seq1.dW.{layer}"])
    sequences = prompts(recording.rows("seq1.", count(recording, "seq1.")))
    earlier = {layer: keys_and_values(model, layer, recording.layers[-1], sequences)[0] for layer in recording.layers}
    check_write(recording, model, "seq2.", statistics, earlier)
