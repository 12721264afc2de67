"""The only place that loads models: safetensors or GGUF, no remote code, one clear line when it cannot be done."""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.micro import MODEL as MICRO_MODEL
from fpbench.models import gguf

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "*.safetensors"
ADAPTER = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json", ADAPTER)
DIGESTED = (WEIGHTS, *CONFIGS, "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja")
HUB_FILES = (*DIGESTED, "*.json", "*.spm")
VOCABULARIES = ("tokenizer*", "*.model", "vocab*", "spiece*", "*.tiktoken")
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
        model: ``micro`` for the bundled model, a folder, a GGUF file, or a hub id ``owner/name``.
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept a checkpoint that only has pickle weights.

    Returns:
        The folder; the file itself, if one was named.

    Raises:
        InputError: if there is no such checkpoint, its weights are neither safetensors nor GGUF that can be read here,
            or it is not what was fetched.
    """
    folder = local_folder(model) or _fetch(model, revision, allow_pickle)
    check_checkpoint(model, folder, allow_pickle=allow_pickle)
    return folder


def local_folder(model: str) -> Path | None:
    """The folder or GGUF file that ``model`` names; ``None`` for a hub id.

    Raises:
        InputError: if it is neither.
    """
    folder = MICRO_MODEL if model == "micro" else Path(model).expanduser()
    if folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf"):
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(f"model {model!r} not found: expected a folder, a .gguf file, 'micro' or a hub id owner/name.")
    return None


def check_checkpoint(model: str, folder: Path, *, allow_pickle: bool = False) -> None:
    """Look whether a folder holds a checkpoint that may be loaded.

    Raises:
        InputError: if it has no config, or its weights are neither safetensors nor GGUF that can be read here.
    """
    if (file := gguf.gguf_file(folder)) is not None:
        return gguf.check_gguf(file)
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
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        name, revision = None, None
    if not isinstance(name, str) or not name:
        raise InputError(f"adapter {folder} does not name its base: expected base_model_name_or_path in {ADAPTER}.")
    try:
        return resolve(name, revision=revision)
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
    paths = {path for pattern in DIGESTED for path in folder.glob(pattern)}
    for path in sorted(paths | ({file} if (file := gguf.gguf_file(folder)) else set())):
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


def tokenizer_source(folder: Path) -> Path | None:
    """Where a checkpoint's tokenizer is: its folder, its GGUF file, or the base of an adapter; ``None`` for nowhere."""
    found = (path for pattern in VOCABULARIES for path in folder.glob(pattern))
    if any(path.name != "tokenizer_config.json" for path in found):
        return folder
    if (file := gguf.gguf_file(folder)) is not None:
        return file
    base = base_of_adapter(folder)
    return None if base is None else tokenizer_source(base)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, instead: Path | None = None) -> Any:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: what :func:`resolve` returned.
        trust_remote_code: run code that comes with it.
        instead: the checkpoint whose tokenizer serves where this one brings none.

    Raises:
        InputError: if there is none, or transformers cannot load it; the first line of its reason is kept.
    """
    from transformers import AutoTokenizer

    found = tokenizer_source(folder) or (None if instead is None else tokenizer_source(instead))
    if found is None:
        raise InputError(
            f"model {os.fspath(folder)!r} brings no tokenizer: put it beside the weights, or, where a --base is taken, "
            "name the model it comes from, whose tokenizer then serves."
        )
    where = gguf.source(found) if found.is_file() else {"pretrained_model_name_or_path": found}
    with _loading(found):
        return AutoTokenizer.from_pretrained(**where, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever transformers says against a folder as one clear line."""
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, struct.error) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model {os.fspath(folder)!r} cannot be loaded: {reason}") from None


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
        where = gguf.source(base_of_adapter(folder) or folder)
        config = AutoConfig.from_pretrained(**where, trust_remote_code=trust_remote_code)
        architecture: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return architecture.eval().requires_grad_(False)


def quantisation(folder: Path) -> dict[str, Any] | None:
    """How the weights of a checkpoint folder, or of an adapter's base, were quantised; ``None`` if they were not."""
    path = (base_of_adapter(folder) or folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] | None = config.get("quantization_config")
    return found


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    tokenizer_of: Path | None = None,
) -> tuple["nn.Module", Any]:
    """Load model and tokenizer of a checkpoint, in eval mode with gradients off.

    A PEFT adapter is merged into its base. GGUF is turned back into floats. What is quantised otherwise stays as it is.

    Args:
        folder: what :func:`resolve` returned.
        device: where the model goes.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default the first on a CPU and bfloat16 on a GPU.
        trust_remote_code: run code that comes with the checkpoint.
        allow_pickle: read pickle weights if there are no others.
        tokenizer_of: the checkpoint whose tokenizer serves where this one brings none.

    Raises:
        InputError: if transformers cannot load it, with the first line of its reason, or weights are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = dtype or default_dtype(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, instead=tokenizer_of)
    base, quantised = base_of_adapter(folder), quantisation(folder) is not None
    factory: Any = AutoModelForCausalLM
    loaded: nn.Module
    with _loading(folder), gguf.no_bar():
        loaded, found = factory.from_pretrained(
            **gguf.weights(base or folder),
            dtype=getattr(torch, dtype),
            device_map={"": device} if quantised else None,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        if base is not None:
            from peft import PeftModel

            loaded = PeftModel.from_pretrained(loaded, folder, use_safetensors=True).merge_and_unload()
    if missing := sorted(found["missing_keys"]):  # which transformers would fill at random
        raise InputError(
            f"model {os.fspath(folder)!r} lacks {len(missing)} of its weights, such as {missing[0]}: a file of the "
            "checkpoint is missing or of another model."
        )
    # What is quantised was loaded to where it belongs, and cannot be moved.
    placed = loaded if quantised else loaded.to(device)
    return placed.eval().requires_grad_(False), tokenizer
