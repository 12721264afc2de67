"""The only place that loads models: safetensors, no remote code, one clear line when it cannot be done."""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.hub import lock
from fpbench.micro import MODEL as MICRO_MODEL

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "*.safetensors"
ADAPTER = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json", ADAPTER)
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
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        raise InputError(
            f"model folder {model!r} has no config.json: expected a Hugging Face checkpoint or a PEFT adapter."
        )
    if not any(folder.glob(WEIGHTS)) and not allow_pickle:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only pickle weights ({pickles[0]})" if pickles else "no weights"
        raise InputError(
            f"model {model!r} has {found}: expected safetensors; convert it, or, for a model to be fingerprinted, "
            "take the risk with --allow-pickle."
        )


def base_of_adapter(folder: Path) -> Path | None:
    """The checkpoint that a PEFT adapter folder changes; ``None`` for a checkpoint of its own.

    Raises:
        InputError: if the adapter does not name its base, or that cannot be found.
    """
    if (folder / "config.json").is_file() or not (folder / ADAPTER).is_file():
        return None
    try:
        name = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise InputError(f"adapter {folder} does not name its base: expected base_model_name_or_path in {ADAPTER}.")
    try:
        return resolve(name)
    except InputError as error:
        raise InputError(f"the base of adapter {folder} cannot be had: {error}") from None


def _fetch(repository: str, revision: str | None, allow_pickle: bool) -> Path:
    from fpbench.hub import models

    pin = lock.pins().get(lock.model_name(repository, revision))
    with quiet():
        if pin is not None:
            return models.pinned(repository, pin)
        return models.snapshot(repository, revision, [*HUB_FILES, *(["*.bin"] if allow_pickle else [])])


def checkpoint_digest(folder: Path, digest: Callable[[Path], str] = lock.sha256) -> str:
    """SHA-256 over the names and contents of weights, config and tokenizer files of a checkpoint folder.

    That of a PEFT adapter covers its base.

    Args:
        folder: of the checkpoint.
        digest: gives the SHA-256 of a file, by reading it or from memory.
    """
    total = hashlib.sha256()
    if base := base_of_adapter(folder):
        total.update(f"base:{checkpoint_digest(base, digest)}\n".encode())
    for path in sorted({path for pattern in DIGESTED for path in folder.glob(pattern)}):
        total.update(f"{path.name}:{digest(path)}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class Loading:
    """How models are loaded: what the command line says about it."""

    device: str
    dtype: str | None = None
    revision: str | None = None
    token_budget: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def precision(self) -> str:
        """The dtype that models are loaded in, by name: unless told, what the protocol says (§2)."""
        return self.dtype or default_dtype(self.device)


def pick_device(device: str | None) -> str:
    """The device asked for, or the first CUDA card, or the CPU.

    Raises:
        InputError: if the device asked for is not here.
    """
    if device is None:
        return "cuda" if _cuda_here() else "cpu"
    if device == "cpu":
        return device
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _cuda_here() -> bool:
    """Whether torch will find a card, without importing it, which takes seconds: its build and the driver tell."""
    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    built = Path(folders[0], "version.py").read_text(encoding="utf-8") if folders else ""
    if re.search(r"^hip\b.*= '", built, re.MULTILINE):
        import torch

        return torch.cuda.is_available()
    if not re.search(r"^cuda\b.*= '", built, re.MULTILINE):
        return False
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a checkpoint folder.

    Raises:
        InputError: if transformers cannot load it; the first line of its reason is kept.
    """
    from transformers import AutoTokenizer

    # An adapter may bring a tokenizer, or leave that to its base.
    source = folder if any(folder.glob("tokenizer*")) else base_of_adapter(folder) or folder
    with _loading(folder):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever transformers says against a folder as one clear line."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model folder {os.fspath(folder)!r} cannot be loaded: {reason}") from None


def default_dtype(device: str) -> str:
    """The dtype that models are loaded in unless another is asked for (protocol §2)."""
    return "float32" if device == "cpu" else "bfloat16"


def load_architecture(folder: Path, *, trust_remote_code: bool = False) -> "nn.Module":
    """The model of a checkpoint folder without its weights, which take no memory: modules, names, shapes and config.

    Raises:
        InputError: if transformers cannot make it; the first line of its reason is kept.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(base_of_adapter(folder) or folder, trust_remote_code=trust_remote_code)
        architecture: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return architecture.eval().requires_grad_(False)


def _quantised(folder: Path) -> bool:
    return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple["nn.Module", Any]:
    """Load model and tokenizer from a checkpoint folder, in eval mode with gradients off.

    A PEFT adapter is merged into its base. What bitsandbytes quantised stays as it is.

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

    dtype = dtype or default_dtype(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    base = base_of_adapter(folder)
    with _loading(folder):
        loaded: nn.Module = AutoModelForCausalLM.from_pretrained(
            base or folder,
            dtype=getattr(torch, dtype),
            device_map={"": device} if _quantised(base or folder) else None,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
        )
        if base is not None:
            from peft import PeftModel

            loaded = PeftModel.from_pretrained(loaded, folder, use_safetensors=True).merge_and_unload()
    # What is quantised was loaded to where it belongs, and cannot be moved.
    placed = loaded if _quantised(base or folder) else loaded.to(device)
    return placed.eval().requires_grad_(False), tokenizer


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
