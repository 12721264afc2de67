"""The only place that loads models: safetensors, no remote code, one clear line when it cannot be done."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.hub import lock
from fpbench.micro import MODEL as MICRO_MODEL

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "*.safetensors"
CONFIGS = ("config.json", "generation_config.json")
DIGESTED = (WEIGHTS, *CONFIGS, "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja")
HUB_FILES = (*DIGESTED, "*.json", "*.spm")
DTYPES = ("float32", "bfloat16", "float16")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep library chatter off the user's terminal: progress bars of loading, notices, deprecations."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def resolve(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """Find the folder of a checkpoint, fetching it from the hub if ``model`` is a hub id.

    A hub id that was fetched (``fpbench fetch``) is read at the commit that was pinned then, and held against its
    digests. Any other is read as the hub has it now.

    Args:
        model: ``micro`` for the bundled model, a folder, or a hub id ``owner/name``.
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept a checkpoint that only has pickle weights.

    Raises:
        InputError: if there is no such checkpoint, its weights are not safetensors, or it is not what was fetched.
    """
    folder = local_folder(model) or _fetch(model, revision, allow_pickle)
    check_checkpoint(model, folder, allow_pickle=allow_pickle)
    return folder


def local_folder(model: str) -> Path | None:
    """The folder that ``model`` names; ``None`` for a hub id.

    Raises:
        InputError: if it is neither.
    """
    folder = MICRO_MODEL if model == "micro" else Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(f"model {model!r} not found: expected a folder, 'micro' or a hub id owner/name.")
    return None


def check_checkpoint(model: str, folder: Path, *, allow_pickle: bool = False) -> None:
    """Look whether a folder holds a checkpoint that may be loaded.

    Raises:
        InputError: if it has no config, or its weights are not safetensors.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {model!r} has no config.json: expected a Hugging Face checkpoint.")
    if not any(folder.glob(WEIGHTS)) and not allow_pickle:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only pickle weights ({pickles[0]})" if pickles else "no weights"
        raise InputError(
            f"model {model!r} has {found}: expected safetensors; convert it, or, for a model to be fingerprinted, "
            "take the risk with --allow-pickle."
        )


def _fetch(repository: str, revision: str | None, allow_pickle: bool) -> Path:
    from fpbench.hub import models

    pin = lock.pins().get(lock.model_name(repository, revision))
    with quiet():
        if pin is not None:
            return models.pinned(repository, pin)
        return models.snapshot(repository, revision, [*HUB_FILES, *(["*.bin"] if allow_pickle else [])])


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of weights, config and tokenizer files of a checkpoint folder."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in DIGESTED for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def pick_device(device: str | None) -> str:
    """The device asked for, or the first CUDA card, or the CPU.

    Raises:
        InputError: if the device asked for is not here.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a checkpoint folder.

    Raises:
        InputError: if transformers cannot load it; the first line of its reason is kept.
    """
    from transformers import AutoTokenizer

    with _loading(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever transformers says against a folder as one clear line."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model folder {os.fspath(folder)!r} cannot be loaded: {reason}") from None


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple["nn.Module", Any]:
    """Load model and tokenizer from a checkpoint folder, in eval mode with gradients off.

    Args:
        folder: what :func:`resolve` returned.
        device: where the model goes.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default the first on a CPU and bfloat16 on a GPU.
        trust_remote_code: run code that comes with the checkpoint.
        allow_pickle: read pickle weights if there are no others.

    Raises:
        InputError: if transformers cannot load it; the first line of its reason is kept.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    with _loading(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
        )
    loaded: nn.Module = model
    return loaded.to(device).eval().requires_grad_(False), tokenizer


def save_checkpoint(model: "nn.Module", tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that plain ``AutoModelForCausalLM.from_pretrained`` loads: whole, or not at all.

    Args:
        model: the model, saved in its own dtype as safetensors.
        tokenizer: its tokenizer.
        folder: does not exist or is empty.

    Raises:
        StorageError: if the disk gives out; nothing half-written remains.
    """
    from safetensors import SafetensorError

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet():
            model.save_pretrained(temporary)  # type: ignore[operator]
            tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"checkpoint {folder} cannot be written ({error}): nothing was kept.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
