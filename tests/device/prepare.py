"""The step before the others: a checkpoint from its parts, and a profile with the data of a mirror."""

import hashlib
import json
import lzma
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.device.step import SETTINGS, Step, write

XZ = b"\xfd7zXZ\x00"
# Without a mirror: files of the micro world.
BUNDLED = {
    "alpaca": "alpaca.jsonl", "math": "math.jsonl", "calibration": "text.jsonl", "statistics": "text.jsonl",
    "zsre": "zsre.jsonl", "boolq": "boolq.jsonl", "rte": "rte.jsonl", "arc_challenge": "arc.jsonl",
    "tinymmlu": "mmlu.jsonl", "wikitext": "prose.txt",
}  # fmt: skip


def prepare(step: Step) -> None:
    """Make the checkpoint, unless it was made before, and write the profile that every other step reads."""
    if step.options.weights:
        target, wanted = step.work / "smollm2", SETTINGS["gguf_sha256"]
        made_of = target / "made_of.txt"
        if not made_of.is_file() or made_of.read_text() != wanted:
            shutil.rmtree(target, ignore_errors=True)
            file = join(step.options.weights, step.work / "gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf", wanted)
            convert(file, target)
            made_of.write_text(wanted)
        step.report["weights_sha256"] = wanted
    sources = data_sources(step)
    step.report["data"] = {name: Path(path).name for name, path in sources.items()}  # wherever these lie
    write(step.profile, toml(profile_of(step, sources)))


def join(parts: Sequence[Path], target: Path, sha256: str) -> Path:
    """Join the parts of a file, or of the file compressed by xz.

    Raises:
        ValueError: if together they are not that file.
    """
    content = b"".join(part.read_bytes() for part in parts)
    if content.startswith(XZ):
        content = lzma.decompress(content)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"the {len(parts)} parts make a file of SHA-256 {found}, expected {sha256}: check their order")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def convert(file: Path, target: Path) -> None:
    """Turn a GGUF file into a checkpoint folder in bfloat16 for plain transformers, whole or not at all."""
    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_model

    model, tokenizer = load_model(resolve(str(file)), device="cpu", dtype="bfloat16")
    making = target.with_name(f".{target.name}")
    shutil.rmtree(making, ignore_errors=True)
    vars(model.config).pop("quantization_config", None)  # the weights are floats now
    model.save_pretrained(making)
    tokenizer.save_pretrained(making)
    making.rename(target)


def data_sources(step: Step) -> dict[str, str]:
    """Where the profile's data are: the mirror's files, else the bundled ones; the report names stand-ins."""
    from fpbench.micro import DATA

    if step.options.mirror is None:
        files = {name: DATA / file for name, file in BUNDLED.items()}
        step.report["stand_ins"] = "toy data throughout: the bundled micro world"
    else:
        mirror = tomllib.loads((step.options.mirror / "mirror.toml").read_text(encoding="utf-8"))
        known = {name: mirror[key] for name, key in SETTINGS["mirror"].items() if key in mirror}
        files = {name: (step.options.mirror / each["path"]).resolve() for name, each in known.items()}
        step.report["stand_ins"] = {name: each["stand_in"] for name, each in known.items() if "stand_in" in each}
    if files["statistics"].suffix != ".jsonl":
        # Lines are whole articles, and a model reads of each document no more than its context.
        lines = files["statistics"].read_text(encoding="utf-8").splitlines()
        size = SETTINGS["piece"]
        pieces = [
            " ".join(words[at : at + size]) for words in map(str.split, lines) for at in range(0, len(words), size)
        ]
        files["statistics"] = step.work / "statistics.jsonl"
        write(files["statistics"], "".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    if step.cut > 1:  # the one size that no profile can cut
        text = files["wikitext"].read_text(encoding="utf-8")
        files["wikitext"] = step.work / "wikitext.txt"
        write(files["wikitext"], text[: max(20_000, len(text) // step.cut)])
    return {name: str(path) for name, path in files.items()}


def profile_of(step: Step, sources: dict[str, str]) -> dict[str, Any]:
    """The protocol's sizes, cut where there is no device or a stand-in holds less; the report says to what."""
    from transformers import AutoConfig

    from fpbench.data import read_rows, read_texts
    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_tokenizer

    folder = resolve(step.checkpoint())
    tokenizer, context = load_tokenizer(folder), AutoConfig.from_pretrained(folder).max_position_embeddings
    held = {
        name: sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in read_texts(sources[name]))
        for name in ("statistics", "calibration")
    }
    sizes: dict[str, Any] = {name: max(2, size // step.cut) for name, size in SETTINGS["sizes"].items()}
    wanted = max(8, SETTINGS["tuning"]["rows"] // step.cut)
    rows = {name: min(wanted, len(read_rows(sources[name]))) for name in ("alpaca", "math")}
    length = min(SETTINGS["pruning"]["length"], context)
    pruning = {"samples": min(max(2, SETTINGS["pruning"]["samples"] // step.cut), held["calibration"] // length)}
    step.report |= {"tokens_at_hand": held, "sizes": sizes, "fine_tuning_rows": rows, "ria": pruning}
    rate = step.options.learning_rate
    tuning = {"epochs": SETTINGS["tuning"]["epochs"], "learning_rate": rate if rate == "search" else float(rate)}
    label = "SmolLM2-135M-Instruct" if step.options.weights else "micro"
    return {
        "seeds": [42],
        "methods": SETTINGS["methods"],
        "fingerprints": ["nlf"],
        "conditions": ["origin", *SETTINGS["drift"]],
        "models": [{"name": label, "path": str(folder)} | SETTINGS["decoding"]],
        "data": sources,
        "sizes": sizes | ({"utility_limit": 12} if step.cut > 1 else {}),
        "modifications": {
            "finetune_alpaca": {"rows": rows["alpaca"]} | tuning,
            "finetune_math": {"rows": rows["math"]} | tuning,
            "ria30": pruning,
            "ria40": pruning,
        },
        "hyperparameters": {name: step.config(name) for name in SETTINGS["methods"] if step.config(name)},
    }


def toml(table: dict[str, Any], name: str = "") -> str:
    """A table as TOML; texts, numbers and lists of them look there as in JSON."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {json.dumps(each)}" for key, each in table.items() if not _nested(each)]
    for key, each in table.items():
        inner = f"{name}.{key}" if name else key
        if isinstance(each, dict):
            lines.append(toml(each, inner))
        elif _nested(each):
            lines += [toml(entry, inner).replace(f"[{inner}]", f"[[{inner}]]", 1) for entry in each]
    return "\n".join(lines) + "\n"


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
