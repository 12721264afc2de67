"""GGUF checkpoints: one file with weights, config and tokenizer, which transformers turns back into floats."""

import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fpbench.errors import InputError

MAGIC = b"GGUF"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def gguf_file(checkpoint: Path) -> Path | None:
    """The GGUF file of a checkpoint; ``None`` for a checkpoint of another make.

    Args:
        checkpoint: the file itself, or a folder with one such file and no safetensors.

    Raises:
        InputError: if a folder holds several.
    """
    if checkpoint.is_file():
        return checkpoint
    if any(checkpoint.glob("*.safetensors")):
        return None
    found = sorted(checkpoint.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"model folder {checkpoint} holds {len(found)} GGUF files ({names}): name one of them.")
    return found[0] if found else None


def check_gguf(file: Path) -> None:
    """Look whether a GGUF file can be read here.

    Raises:
        InputError: if it is part of a split one, or no GGUF file at all, or what reads it is not installed.
    """
    if PART.search(file.name):
        raise InputError(f"{file} is one part of a split GGUF file: merge the parts (llama-gguf-split --merge) first.")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{file} is no GGUF file: expected it to begin with {MAGIC.decode()}; check the download.")
    if find_spec("gguf") is None:
        raise InputError(f"{file} needs the package gguf, which is not installed: pip install 'fpbench[gguf]'.")


def source(checkpoint: Path) -> dict[str, Any]:
    """What ``from_pretrained`` is told about where a checkpoint is, GGUF or not."""
    file = gguf_file(checkpoint)
    where = checkpoint if file is None else file.parent
    return {"pretrained_model_name_or_path": where} | ({} if file is None else {"gguf_file": file.name})


def weights(checkpoint: Path) -> dict[str, Any]:
    """What it is told to load them: those of a GGUF file as floats, whatever kernels are at hand."""
    where = source(checkpoint)
    if "gguf_file" in where:
        from transformers import GgufConfig

        where["quantization_config"] = GgufConfig(dequantize=True)
    return where


def no_bar() -> contextlib.AbstractContextManager[Any]:
    """Hide the progress bar of the conversion, which transformers shows whatever it is told about bars."""
    return contextlib.redirect_stderr(io.StringIO())
