"""Lineage by weights and signatures: synthetic depths, and real descendants of the bundled model."""

import copy
import json
import re
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.micro import MODEL
from fpbench.models.loading import load_model, save_checkpoint
from fpbench.models.stored import matrices
from fpbench.ownership.lineage import (
    SignatureEvidence,
    WeightEvidence,
    decide,
    signature_evidence,
    spreads,
    weight_evidence,
)
from tests.conftest import SHARED, require

KINDS = ("q", "k", "v", "o")


def family(depth, seed, roughness=1.0):
    """A signature with a trend that all families share and a course of its own."""
    draw = np.random.default_rng(seed)
    places = (np.arange(depth) + 0.5) / depth
    found = {}
    for kind in KINDS:
        waves = sum(draw.normal() / wave * np.cos(np.pi * wave * places + draw.uniform(0, 6)) for wave in range(1, 7))
        found[kind] = 0.02 * (1 + 0.3 * places + 0.2 * roughness * waves)
    return found


def disturbed(signature, seed, by=0.01):
    draw = np.random.default_rng(seed)
    return {kind: course * (1 + by * draw.normal(size=len(course))) for kind, course in signature.items()}


@cache
def of_strangers(depth):
    """Correlations of a model with four strangers of 32 blocks."""
    model = family(depth, seed=1)
    return [signature_evidence(model, family(32, seed=seed)).correlation for seed in range(10, 14)]


@pytest.mark.parametrize("depth", [24, 48])
@pytest.mark.parametrize("other_depth", [24, 36])
def test_signatures_tell_descendants_from_strangers_at_usual_depths(depth, other_depth):
    """A descendant of another depth has the same course over its relative depth, read at other places."""
    model = family(depth, seed=1)
    descendant = disturbed(family(other_depth, seed=1), seed=2)
    strangers = of_strangers(depth)
    found = signature_evidence(model, descendant)
    assert found.correlation > 0.9 and found.p_value < 1e-3 and found.blocks == min(depth, other_depth)
    assert decide(None, found, strangers)[0] == "related"
    stranger = signature_evidence(model, family(other_depth, seed=99))
    assert decide(None, stranger, strangers)[0] != "related"


def test_a_signature_alone_proves_nothing_without_strangers_or_with_few_blocks():
    found = signature_evidence(family(24, 1), disturbed(family(24, 1), 2))
    verdict, reason = decide(None, found)
    assert verdict == "undecided" and "give unrelated ones" in reason
    few = signature_evidence(family(6, 1), family(6, 1))
    verdict, reason = decide(None, few, [0.1])
    assert verdict == "undecided" and "too few layers" in reason
    assert signature_evidence({"q": np.ones(3)}, {"qkv": np.ones(3)}) is None


def test_the_interval_and_the_chance_interval_hold_what_they_should():
    found = signature_evidence(family(32, 1), family(32, 2))
    assert found.chance[0] < 0 < found.chance[1]
    assert found.interval[0] <= found.correlation <= found.interval[1]


@pytest.mark.parametrize(
    ("correlation", "verdict"), [(0.98, "related"), (0.5, "related"), (0.3, "undecided"), (0.01, "unrelated")]
)
def test_weights_decide_where_shapes_agree(correlation, verdict):
    against = SignatureEvidence(0.9, (0.8, 0.95), (-0.3, 0.3), 1e-4, 24)
    assert decide(WeightEvidence(42, correlation, 0.0, 1.0), against, [0.1])[0] == verdict


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """The micro architecture with other weights: independent of the bundled ones."""
    folder = tmp_path_factory.mktemp("stranger") / "model"
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.bfloat16)
    save_checkpoint(model, load_model(MODEL)[1], folder)
    return folder


@pytest.fixture(scope="module")
def descendants(tmp_path_factory):
    """The bundled model pruned, and quantised by bitsandbytes, as checkpoints."""
    folder = tmp_path_factory.mktemp("descendants")
    model, tokenizer = load_model(MODEL)
    pruned = fpbench.modify(copy.deepcopy(model), tokenizer, "ria40", {"samples": 8})
    save_checkpoint(pruned, tokenizer, folder / "ria40")
    for name, settings in {
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }.items():
        quantised = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=settings, dtype=torch.float32)
        quantised.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(("name", "least"), [("ria40", 0.9), ("nf4", 0.98), ("int8", 0.999)])
def test_descendants_of_the_bundled_model_are_related(descendants, name, least):
    found = fpbench.compare(str(MODEL), str(descendants / name))
    assert found.verdict == "related", found.reason
    assert found.weights.lowest > least and found.weights.matrices == 42
    assert found.blocks == (6, 6)


def test_an_independent_model_of_the_same_make_is_unrelated(stranger):
    found = fpbench.compare(str(MODEL), str(stranger))
    assert found.verdict == "unrelated", found.reason
    assert max(abs(found.weights.lowest), abs(found.weights.highest)) < 0.05


def rearranged(folder, order, silent=()):
    """The bundled model with its blocks in another order, some of them twice or new, some with zeros for output."""
    shutil.copytree(MODEL, folder)
    base, draw = load_file(MODEL / "model.safetensors"), torch.Generator().manual_seed(1)
    made = {name: value for name, value in base.items() if "layers." not in name}
    for new, old in enumerate(order):
        for name, value in base.items():
            if name.startswith(f"model.layers.{0 if old is None else old}."):
                if old is None:
                    value = torch.randn(value.shape, generator=draw).to(value.dtype)
                if new in silent and ("o_proj" in name or "down_proj" in name):
                    value = value * 0
                made[re.sub(r"layers\.\d+", f"layers.{new}", name)] = value.clone()
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("order", "silent", "matched", "said"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], (1, 3, 5, 7, 9, 11), [0, 2, 4, 6, 8, 10], "these repeat others"),
        ([0, 1, 0, 1, 2, 3, 4, 5], (), None, "these repeat others: 0, 1 and"),
        ([0, 1, 5], (), [0, 1, 2], "by content: 0, 1, 5 and 0–2. Of the first model, 2–4 match none."),
        (
            [3, None, None, 4],
            (),
            [0, 3],
            "3, 4 and 0, 3. Of the first model, 0–2, 5 match none. Of the second model, 1, 2",
        ),
    ],
)
def test_blocks_are_matched_by_content(tmp_path, order, silent, matched, said):
    found = fpbench.compare(str(MODEL), str(rearranged(tmp_path / "model", order, silent)))
    assert found.verdict == "related" and said in found.reason, found.reason
    assert found.weights.lowest > 0.999
    assert all(order[other] == one for one, other in (*found.weights.matched, *found.weights.repeated))
    if matched is not None:
        assert [other for _, other in found.weights.matched] == matched


def beside_a_tower(folder, seed, tower, file="model.safetensors"):
    """A language model behind a vision tower, both with blocks of one size, given by seeds."""
    folder.mkdir(exist_ok=True)
    weights = {}
    for parent, own in (("model.language_model.layers", seed), ("model.vision_tower.encoder.layers", tower)):
        draw = torch.Generator().manual_seed(own)
        for block in range(3):
            weights[f"{parent}.{block}.self_attn.q_proj.weight"] = torch.randn(64, 64, generator=draw)
    weights["model.language_model.embed_tokens.weight"] = torch.zeros(8, 64)
    save_file(weights, folder / file, {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return weights


def test_a_shared_vision_tower_is_no_kinship(tmp_path):
    beside_a_tower(tmp_path / "a", 1, tower=9)
    beside_a_tower(tmp_path / "b", 2, tower=9)
    beside_a_tower(tmp_path / "c", 1, tower=8)
    found = fpbench.compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.verdict == "unrelated" and found.blocks == (3, 3), found.reason
    assert fpbench.compare(str(tmp_path / "a"), str(tmp_path / "c")).verdict == "related"


def test_of_shards_those_of_the_index_are_read(tmp_path):
    beside_a_tower(tmp_path / "a", 1, tower=9)
    names = beside_a_tower(tmp_path / "b", 2, tower=9, file="model-00001-of-00001.safetensors")
    beside_a_tower(tmp_path / "b", 1, tower=9, file="model-00001-of-00002.safetensors")  # as it was before
    index = tmp_path / "b" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    assert fpbench.compare(str(tmp_path / "a"), str(tmp_path / "b")).verdict == "unrelated"
    index.write_text("[]")
    with pytest.raises(InputError, match="is no index of weights"):
        matrices(tmp_path / "b")


@pytest.mark.parametrize(
    ("config", "dtype", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, torch.float32, "is quantised by gptq"),
        ({"quantization": {"bits": 4}}, torch.uint32, "as uint32, in a form that is not turned back into floats"),
    ],
)
def test_weights_in_forms_that_are_not_read_are_refused(tmp_path, config, dtype, said):
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4, dtype=dtype)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        matrices(tmp_path)[0, "mlp.up_proj"]


def test_models_of_other_shapes_and_few_blocks_are_undecided():
    found = fpbench.compare(str(MODEL), str(require(SHARED / "models" / "stories260K")), unrelated=[])
    assert found.verdict == "undecided" and "too few layers" in found.reason and found.weights is None


def test_quantised_weights_are_read_as_what_they_stand_for(descendants):
    original = matrices(MODEL)
    for name in ("nf4", "int8"):
        stored = matrices(descendants / name)
        assert set(stored) == set(original)
        one, other = stored[2, "mlp.down_proj"], original[2, "mlp.down_proj"]
        assert one.shape == other.shape and (one - other).norm() / other.norm() < {"nf4": 0.12, "int8": 0.02}[name]
    assert weight_evidence(original, original).lowest == pytest.approx(1.0)
    assert {kind: len(course) for kind, course in spreads(original).items()} == dict.fromkeys("qkvo", 6)


def test_the_verb_says_what_it_found_and_writes_it(capsys, tmp_path, stranger):
    assert main(["compare", "micro", str(stranger), "--unrelated", str(stranger), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "UNRELATED" in said and "(unrelated)" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "comparison.svg"}


def test_a_folder_without_blocks_is_refused(tmp_path):
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="decoder blocks"):
        matrices(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        matrices(tmp_path)
