"""The matrices of a checkpoint, one at a time and dequantised: whole models need not fit the memory."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpbench.errors import InputError
from fpbench.models.checkpoints import base_of_adapter, gguf_file
from fpbench.models.loading import load_model

# A matrix of a decoder block: number of the block, and name within it.
IN_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)\.weight$")
QUANTISED = "quant_state.bitsandbytes__"


class Matrices(Mapping[tuple[int, str], Tensor]):
    """Matrices of decoder blocks by number of the block and name within it; float32 when read."""

    def __init__(self, folder: Path, ranks: Mapping[str, int], read: Callable[[str], Tensor]) -> None:
        """Choose from the weights of a checkpoint, given with their numbers of dimensions.

        Raises:
            InputError: if there is no decoder block.
        """
        found = ((IN_BLOCK.search(name), name) for name, rank in ranks.items() if rank == 2)
        self._names = {(int(match[1]), match[2]): name for match, name in found if match}
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
    def blocks(self) -> int:
        """Return the number of decoder blocks."""
        return len({block for block, _ in self._names})


def matrices(folder: Path) -> Matrices:
    """Open any checkpoint; adapters and GGUF files are loaded, of safetensors only the headers are read at first.

    Raises:
        InputError: if it cannot be read, or there is no decoder block.
    """
    if base_of_adapter(folder) is not None or gguf_file(folder) is not None:
        weights = dict(load_model(folder, dtype="float32")[0].named_parameters())
        ranks = {name: weight.ndim for name, weight in weights.items()}
        return Matrices(folder, ranks, lambda name: weights[name].detach())
    where: dict[str, Path] = {}
    ranks = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                where |= dict.fromkeys(file.keys(), path)
                ranks |= {name: len(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights {path} cannot be read: {error}.") from None
    return Matrices(folder, ranks, partial(_dequantised, where))


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
    return weight.float()
