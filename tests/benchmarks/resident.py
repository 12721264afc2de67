"""What a random-weight model of the 3B shape, cut to a few blocks, takes in main memory, phase by phase.

    python -m tests.benchmarks.resident BLOCKS DTYPE

prints one JSON object: bytes above what was there before each phase. A process of its own, so that nothing else counts.
"""

import json
import sys
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fpbench.methods.null_space import second_moment
from fpbench.models import training
from fpbench.models.layout import layout
from fpbench.models.meter import Meter, give_back, no_progress
from fpbench.models.training import LoRAConfig, adapter, answer_loss
from fpbench.models.weights import weights
from fpbench.modifications.base import ModificationContext
from fpbench.registry import MODIFICATIONS
from fpbench.scoring.engine import limited_to, log_likelihoods, read

# meta-llama/Llama-3.2-3B: sizes of its config.json.
SHAPE = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "max_position_embeddings": 131_072,
    "tie_word_embeddings": True, "bos_token_id": 128_000, "eos_token_id": 128_001,
}  # fmt: skip
READ, SCORED, TRAINED, RANK = (16, 128), (8, 128), (4, 64), 32


def config(blocks: int) -> LlamaConfig:
    """The shape with fewer blocks."""
    return LlamaConfig(**(SHAPE | {"num_hidden_layers": blocks}))


def resident() -> int:
    """Bytes that this process holds."""
    give_back()
    return int(psutil.Process().memory_info().rss)


def sequences(shape: tuple[int, int]) -> list[list[int]]:
    drawn = torch.randint(SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    return [list(map(int, row)) for row in drawn]


def peak_above(work: Any) -> int:
    """Bytes at the highest point of some work above those before it."""
    before = resident()
    with Meter() as meter:
        work()
    return meter.peak_memory - before


def step(model: Any) -> None:
    """One step of fine-tuning, without the optimiser: its two moments are as large as the adapters."""
    batch = [(ids, len(ids) // 2) for ids in sequences(TRAINED)]
    with torch.enable_grad(), adapter(model, LoRAConfig(1e-4, 1, TRAINED[0], rank=RANK)):
        loss, _ = answer_loss(model, batch)
        loss.backward()


def decomposed(width: int) -> None:
    keys = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    torch.linalg.eigh(keys @ keys.T)


def measure(blocks: int, dtype: str) -> dict[str, float]:
    """Every phase, for a model of ``blocks`` blocks."""
    found: dict[str, float] = {}
    step(AutoModelForCausalLM.from_config(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1,
         num_attention_heads=1, num_key_value_heads=1, vocab_size=SHAPE["vocab_size"])))  # fmt: skip
    found["libraries"] = before = resident()
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config(blocks), dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    found["parameters"] = sum(each.numel() for each in model.parameters())
    found["weights"] = resident() - before
    before = resident()
    copies = weights(model)
    found["copies"] = resident() - before
    del copies
    ids, scored = sequences(READ), sequences(SCORED)
    found["read"] = peak_above(lambda: read(model, ids, [1] * len(ids), lambda level: dict.fromkeys(level.nodes)))
    with limited_to(READ[0] * READ[1]):
        found["scored"] = peak_above(lambda: log_likelihoods(model, scored, [len(each) - 1 for each in scored]))
    for name, large in (("trained", 10**12), ("trained twice computed", 1)):
        training.LARGE = large
        found[name] = peak_above(lambda: step(model))
    if blocks == 2:
        documents = [each * 4 for each in sequences((16, 128))]
        names = [layout(model).down_proj_name(0)]
        found["statistics"] = peak_above(lambda: second_moment(model, names, documents, no_progress))
        found["decomposition, in units of its matrix"] = peak_above(lambda: decomposed(2048)) / (4 * 2048**2)
    before = resident()
    quantise = MODIFICATIONS.get("nf4")()
    found["nf4, at most"] = peak_above(lambda: quantise.apply(model, None, ModificationContext()))
    found["nf4, left"] = resident() - before
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
