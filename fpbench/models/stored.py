"""The matrices of a checkpoint, one at a time and dequantised: whole models need not fit the memory."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpbench.errors import InputError
from fpbench.models.checkpoints import base_of_adapter, gguf_file, quantisation
from fpbench.models.loading import load_model

# A matrix of a decoder block: number of the block, and name within it.
IN_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)\.weight$")
# The table of tokens, which stands beside the blocks of the language model, and not beside those of a vision tower.
EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings?)\.weight$")
QUANTISED = "quant_state.bitsandbytes__"
BITSANDBYTES = "bitsandbytes"
OTHER_SENSES = re.compile(r"vis|image|vit\b|clip|audio|speech|encoder|tower|former|perceiver|resampler|projector")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Matrices(Mapping[tuple[int, str], Tensor]):
    """Matrices of the language model's blocks by number of the block and name within it; float32 when read."""

    def __init__(self, folder: Path, ranks: Mapping[str, int], read: Callable[[str], Tensor]) -> None:
        """Choose from the weights of a checkpoint, given with their numbers of dimensions.

        Raises:
            InputError: if there is no decoder block.
        """
        found = {name: match for name, rank in ranks.items() if rank == 2 and (match := IN_BLOCK.search(name))}
        language = _of_language({name: name[: match.start()] for name, match in found.items()}, ranks)
        self._names = {(int(found[name][1]), found[name][2]): name for name in language}
        self._read = read
        if not self._names:
            raise InputError(f"{folder}: expected a checkpoint with decoder blocks, found none.")

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self._read(self._names[key])

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the decoder blocks, ascending."""
        return sorted({block for block, _ in self._names})

    @property
    def blocks(self) -> int:
        """Return the number of decoder blocks."""
        return len(self.numbers)


def _of_language(parents: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return the matrices, given with what their lists of blocks are part of, that are the language model's.

    Where a checkpoint has several lists of blocks, that is the one that stands beside the table of tokens; where that
    tells nothing, all are kept but those whose names tell that they see or hear.
    """
    beside = {name[: match.start()] for name in names if (match := EMBEDDING.search(name))}
    lists = set(parents.values())
    chosen = (lists & beside) or {each for each in lists if not OTHER_SENSES.search(each)} or lists
    return [name for name, parent in parents.items() if parent in chosen]


def matrices(folder: Path, base: Path | None = None) -> Matrices:
    """Open any checkpoint; adapters and GGUF files are loaded, of safetensors only the headers are read at first.

    ``base`` serves where the base that an adapter names is not here.

    Raises:
        InputError: if it cannot be read, is quantised otherwise than by bitsandbytes, or there is no decoder block.
    """
    method = (quantisation(folder, base) or {}).get("quant_method", BITSANDBYTES)
    if BITSANDBYTES not in str(method):
        raise InputError(
            f"{folder} is quantised by {method}, which is not turned back into floats here: expected safetensors, GGUF "
            "or bitsandbytes; save it dequantised first."
        )
    if base_of_adapter(folder, base) is not None or gguf_file(folder) is not None:
        return _loaded(folder, base)
    where: dict[str, Path] = {}
    ranks: dict[str, int] = {}
    for path, named in _files(folder).items():
        try:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if named is None or name in named]  # noqa: SIM118
                where |= dict.fromkeys(names, path)
                ranks |= {name: len(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights {path} cannot be read: {error}.") from None
    return Matrices(folder, ranks, partial(_dequantised, where))


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the files that transformers reads, with the tensors that it takes from each; ``None`` for all of them.

    Raises:
        InputError: if an index cannot be read.
    """
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        whole = (folder / WHOLE).is_file()
        return dict.fromkeys([folder / WHOLE] if whole else sorted(folder.glob("*.safetensors")))
    found: dict[Path, set[str] | None] = {}
    try:
        for name, file in json.loads((folder / INDEX).read_text(encoding="utf-8-sig"))["weight_map"].items():
            found[folder / file] = (found.get(folder / file) or set()) | {name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / INDEX} is no index of weights: expected JSON with a weight_map.") from None
    return found


def _loaded(folder: Path, base: Path | None) -> Matrices:
    """Load a checkpoint whole, and read from memory; layers of bitsandbytes are turned back into floats."""
    from peft.utils.integrations import dequantize_module_weight

    model = load_model(folder, dtype="float32", tokenizer_of=base)[0]
    layers = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    }
    weights = dict(model.named_parameters())

    def read(name: str) -> Tensor:
        weight = dequantize_module_weight(layers[name]) if name in layers else weights[name]
        return weight.detach().float()

    return Matrices(folder, {name: 2 if name in layers else weight.ndim for name, weight in weights.items()}, read)


def _dequantised(where: Mapping[str, Path], name: str) -> Tensor:
    """Read a weight as float32, with LLM.int8() and four-bit weights of bitsandbytes dequantised."""

    def stored(name: str) -> Tensor:
        with safe_open(where[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    weight = stored(name)
    scale = f"{name.removesuffix('.weight')}.SCB"
    if scale in where:
        return weight.float() * stored(scale).float()[:, None] / 127
    beside = [each for each in where if each.startswith(f"{name}.")]
    if any(QUANTISED in each for each in beside):
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict({each: stored(each) for each in beside}, torch.device("cpu"))
        weight = dequantize_4bit(weight, state)
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"{where[name]} holds {name} as {kind}, in a form that is not turned back into floats here (MLX, for one): "
            "save it dequantised first."
        )
    return weight.float()
