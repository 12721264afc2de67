"""docs/memory.md: its predicted peaks are what the estimate behind a dry run counts today."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from fpbench.methods.base import FingerprintMethod
from fpbench.models.costs import Phase, Room
from fpbench.models.loading import Loading
from fpbench.registry import METHODS, MODIFICATIONS
from fpbench.runs.injection import create_method
from fpbench.runs.memory import GIB, Footprint, peak
from tests.docs.markdown import read, table

DOCUMENT = read("memory.md")
SHAPES: dict[str, Any] = {
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=131_072,
    ),
    "Mistral-7B": MistralConfig(
        vocab_size=32_768, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32_768,
    ),
    "Qwen3-8B": Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960,
    ),
}  # fmt: skip
# Rows of the document, and what of the estimate they show.
INJECTIONS = {
    "statistics, closed-form injection": ("alphaedit", "fpedit", "mcedit_a"),
    "RLEdit, MCEdit_R": ("rledit", "mcedit_r"),
    "LoRA": ("lora",),
}
MODIFIED = {
    "fine-tuning": ("finetune_alpaca", "finetune_math"),
    "int8, NF4": ("int8", "nf4"),
    "RIA": ("ria30", "ria40"),
}


@cache
def footprint(name: str) -> tuple[Footprint, dict[str, FingerprintMethod]]:
    """What is resident of one model on a card, and the methods of the package for it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16)
    methods = ("lora", "alphaedit", "fpedit", "mcedit_a", "rledit", "mcedit_r")
    assert set(methods) <= set(METHODS.names())
    return Footprint(model, Loading("cuda", "bfloat16")), {each: create_method(each, model, {}) for each in methods}


def peaks(name: str) -> dict[str, set[str]]:
    """Row of the document → card and main memory, in GiB, of everything that the row is about."""
    found, methods = footprint(name)
    resident = found.resident()
    first = Phase(resident.name, resident.device, resident.main + Room(found.spectra(methods.values())))
    phases = {"scoring": [found.scoring(False)], "scoring accidental triggers": [found.scoring(True)]}
    phases |= {row: [methods[each].memory(found) for each in names] for row, names in INJECTIONS.items()}
    for row, conditions in MODIFIED.items():
        settings = {"learning_rate": 1e-4} if row == "fine-tuning" else {}
        phases[row] = [MODIFICATIONS.get(each)(**settings).memory(found) for each in conditions]
    shown = {row: {_shown(*peak([first, phase], True)[::-1]) for phase in each} for row, each in phases.items()}
    main, _ = peak([first, Phase("nothing", Room())], True)
    return shown | {"weights, and their copy": {_shown(Room(found.weights), main)}}


def _shown(card: Room, main: Room) -> str:
    return f"{card.total / GIB:.1f} / {main.total / GIB:.1f}"


@pytest.mark.parametrize("name", SHAPES)
def test_the_predicted_peaks_are_those_of_the_estimate(name: str):
    rows = {row["card / main memory"]: row[name] for row in table(DOCUMENT, "| card / main memory ")}
    assert {row: {figure} for row, figure in rows.items()} == peaks(name)
