"""Descendants of a fingerprinted checkpoint as folders, and the verbs that are put to them."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import fpbench
from fpbench.board.row import MODIFICATIONS
from fpbench.cli import main
from fpbench.data import read_rows
from fpbench.micro import MODEL
from fpbench.models.loading import load_model, save_checkpoint
from fpbench.records.store import read_records

LIGHT = """
methods = []
fingerprints = ["nlf"]
conditions = ["origin"]

[[models]]
path = "micro"
temperature = 0.6
top_p = 0.9
top_k = 50

[data]
alpaca = "bundled:alpaca.jsonl"
wikitext = "{folder}/prose.txt"
statistics = "bundled:text.jsonl"
zsre = "bundled:zsre.jsonl"

[sizes]
context_rows = 1
substitutions = 4
substitute_words = 20
near_triggers = 4
band_texts = 20
statistics_tokens = 10000
"""


def light_profile(folder: Path) -> str:
    """A profile that measures little of everything."""
    prose = (MODEL.parent / "data" / "prose.txt").read_text(encoding="utf-8")
    (folder / "prose.txt").write_text(prose[:5_000], encoding="utf-8")
    (folder / "light.toml").write_text(LIGHT)
    return str(folder / "light.toml")


def evaluate(profile: str, checkpoint: Path, pairs: str, out: Path, *more: str) -> dict[str, dict[str, Any]]:
    """What ``fpbench evaluate`` records of a checkpoint, by metric."""
    command = ["evaluate", str(checkpoint), "--fingerprints", pairs, "--profile", profile, "--out", str(out), *more]
    assert main(command) == 0
    records = [each for each in read_records(out / "records") if each.cell.method == "checkpoint"]
    assert all(each.status == "done" for each in records)
    return {each.cell.metric: each.to_dict() for each in records}


def verified(suspect: list[str], pairs: str, out: Path, *more: str) -> dict[str, Any]:
    """What ``fpbench verify`` reports of a suspect: a folder, or ``--endpoint`` and a URL."""
    out.unlink(missing_ok=True)
    assert main(["verify", *suspect, "--fingerprints", pairs, "--out", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def save_modified(origin: Path, condition: str, profile: str, folder: Path) -> Path:
    """Save what a condition makes of a checkpoint; four bits before their first forward pass."""
    model, tokenizer = load_model(origin)
    save_checkpoint(fpbench.modify(model, tokenizer, condition, profile=profile), tokenizer, folder)
    return folder


def save_adapter(origin: Path, folder: Path, steps: int = 8) -> Path:
    """Train a LoRA adapter on instructions for some steps and save it alone, as peft does."""
    model, tokenizer = load_model(origin)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-3)
    rows = read_rows("bundled:alpaca.jsonl")
    for step in range(steps):
        text = "\n".join(f"{row['instruction']} {row['output']}" for row in rows[step * 4 : step * 4 + 4])
        ids = torch.tensor([tokenizer(text)["input_ids"][:256]])
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(folder)
    return folder


def descendants(origin: Path, profile: str, folder: Path) -> dict[str, Path]:
    """The six conditions and a PEFT adapter, by name."""
    made = {name: save_modified(origin, name, profile, folder / name) for name in MODIFICATIONS}
    return made | {"adapter": save_adapter(origin, folder / "adapter")}
