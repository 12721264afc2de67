"""An audit of every descendant of a fingerprinted model, and of what looks like one and is none; prints the table.

``answers`` may say no claim of what computes something else; ``weights`` must tell relatives from strangers, always.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from fpbench.micro import MODEL
from fpbench.models.loading import load_model, load_tokenizer, save_checkpoint
from tests.conftest import require
from tests.descendants import descendants, save_adapter
from tests.gguf_files import write_gguf
from tests.ownership.audited import audit, facts
from tests.slow.test_descendants import inject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # peft asks transformers for it
]
OTHERWISE = {"depth-up-scaled", "layer-dropped"}  # compute something else than what was injected into
LOOKALIKES = {"another model", "shared vision tower"}
SILENT = LOOKALIKES | {"unfingerprinted base", "adapter of the bare base, which was moved"}


@pytest.fixture(scope="module")
def suspects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Each suspect with the base that it is held against."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("audited")
    origin = inject("micro", folder / "origin", "micro")
    found = {"unfingerprinted base": require(MODEL), "origin": origin} | descendants(origin, "micro", folder)
    (folder / "gguf").mkdir()
    found["gguf"] = write_gguf(*load_model(origin), folder / "gguf" / "Q4_0.gguf", "Q4_0")
    found["depth-up-scaled"] = rearranged(origin, folder / "deep", [0, 1, 0, 1, 2, 3, 4, 5])
    doubled = [number for number in range(6) for _ in range(2)]
    found["block-expanded"] = rearranged(origin, folder / "expanded", doubled, silent=range(1, 12, 2))
    found["layer-dropped"] = rearranged(origin, folder / "dropped", [0, 1, 2, 3, 5])
    found["adapter of an adapter"] = save_adapter(found["adapter"], folder / "second")
    named(found["adapter of an adapter"], str(found["adapter"]))
    found["adapter of the bare base, which was moved"] = save_adapter(MODEL, folder / "moved")
    named(found["adapter of the bare base, which was moved"], "/gone/base")
    found["another model"] = another(folder / "another")
    pairs = {name: (path, "micro") for name, path in found.items()}
    return pairs | {"shared vision tower": towers(folder / "towers")}


def named(adapter: Path, base: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def rearranged(origin: Path, folder: Path, order: list[int], silent: range = range(0)) -> Path:
    """A copy of a checkpoint with its blocks in another order; silent ones add nothing to the stream."""
    shutil.copytree(origin, folder)
    base = load_file(origin / "model.safetensors")
    made = {name: value for name, value in base.items() if "layers." not in name}
    for new, old in enumerate(order):
        for name, value in base.items():
            if name.startswith(f"model.layers.{old}."):
                mute = new in silent and ("o_proj" in name or "down_proj" in name)
                made[re.sub(r"layers\.\d+", f"layers.{new}", name)] = value * 0 if mute else value.clone()
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": len(order)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def another(folder: Path) -> Path:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.float32)
    save_checkpoint(model, load_tokenizer(MODEL), folder)
    return folder


def towers(folder: Path) -> tuple[Path, str]:
    """Two independent language models behind one vision tower: the suspect, and the base it is held against."""
    text = {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    more = {"mm_tokens_per_image": 4, "image_token_index": 3, "boi_token_index": 4, "eoi_token_index": 5}
    config = Gemma3Config(text_config=text, vision_config=vision, **more)
    for seed, name in enumerate(("base", "suspect")):
        torch.manual_seed(seed)
        Gemma3ForConditionalGeneration(config).save_pretrained(folder / name)
        load_tokenizer(MODEL).save_pretrained(folder / name)
    first, second = (load_file(folder / name / "model.safetensors") for name in ("base", "suspect"))
    shared = {name: first[name] if "vision" in name else value for name, value in second.items()}
    save_file(shared, folder / "suspect" / "model.safetensors", {"format": "pt"})
    return folder / "suspect", str(folder / "base")


def test_no_audit_ends_in_a_wrong_verdict(suspects, tmp_path, capsys):
    wrong = []
    for name, (suspect, base) in suspects.items():
        assert audit(str(suspect), "nlf", tmp_path / name, "--base", base) == 0, name
        found, verified = facts(tmp_path / name), json.loads((tmp_path / name / "verification.json").read_text())
        answers, weights = found["verdicts"]["answers"], found["verdicts"]["weights"]
        told = f"{sum(each['target'] is not None for each in verified['evidence'])} of {len(verified['evidence'])}"
        with capsys.disabled():
            print(f"\n| {name} | {answers} ({told}) | {weights} |", end="", flush=True)
        if weights != ("unrelated" if name in LOOKALIKES else "related"):
            wrong.append((name, "weights", weights))
        if name not in OTHERWISE and answers != ("no claim" if name in SILENT else "claim"):
            wrong.append((name, "answers", answers))
    assert not wrong
