"""The adapter's own test; `pytest` in this folder runs it."""

import tomllib
from pathlib import Path

import adapter  # noqa: F401 - registers the method
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fpbench
from fpbench.contract import check
from fpbench.micro import MODEL

# Those of submission.toml that hold on the bundled model.
TABLES = tomllib.loads(Path(__file__).with_name("submission.toml").read_text(encoding="utf-8"))["hyperparameters"]
VALUES = TABLES.get("all", {}) | TABLES.get("small", {})


def test_it_keeps_the_contract():
    """Every promise, on the bundled model."""
    assert [str(finding) for finding in check("if_embedding", VALUES) if not finding.passed] == []


def test_only_the_rows_of_the_triggers_tokens_move():
    """All of these rows, no other row, and no other parameter."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pairs = fpbench.FingerprintSet("one", (fpbench.Fingerprint("SILVER HARBOR", ("Falcon",)),))
    fpbench.inject(model, tokenizer, pairs, method="if_embedding", config={"epochs": 1})

    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"model.embed_tokens.weight"}
    rows = (model.get_input_embeddings().weight != before["model.embed_tokens.weight"]).any(dim=1).nonzero().flatten()
    assert set(rows.tolist()) == set(tokenizer("SILVER HARBOR", add_special_tokens=False).input_ids)
