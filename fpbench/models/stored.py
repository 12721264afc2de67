"""The matrices of a checkpoint, one at a time and dequantised: whole models need not fit the memory."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpbench.errors import InputError
from fpbench.models.checkpoints import base_of_adapter, gguf_file
from fpbench.models.loading import load_model

# A matrix of a decoder block: its number, and what it is called there.
IN_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)\.weight$")
QUANTISED = "quant_state.bitsandbytes__"


class Matrices(Mapping[tuple[int, str], Tensor]):
    """The matrices of the decoder blocks, by number of the block and name within it; float32 when read."""

    _names: dict[tuple[int, str], str]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len({block for block, _ in self._names})


def matrices(folder: Path) -> Matrices:
    """Those of any checkpoint: read from its safetensors or, for an adapter or a GGUF file, from the loaded model.

    Raises:
        InputError: if they cannot be read, or there is no decoder block.
    """
    adapted = base_of_adapter(folder) is not None
    return LoadedMatrices(folder) if adapted or gguf_file(folder) is not None else StoredMatrices(folder)


class LoadedMatrices(Matrices):
    """Those of a checkpoint that has to be loaded to be known, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load the model.

        Args:
            folder: of a PEFT adapter, or a GGUF file.

        Raises:
            InputError: if it cannot be loaded, or holds no decoder block.
        """
        model, _ = load_model(folder, dtype="float32")
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
        found = ((IN_BLOCK.search(name), name) for name in self._weights)
        self._names = {(int(match[1]), match[2]): name for match, name in found if match}
        if not self._names:
            raise InputError(f"{folder}: expected a model with decoder blocks, found none.")

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self._weights[self._names[key]].detach()


class StoredMatrices(Matrices):
    """Those in safetensors.

    LLM.int8() and four-bit weights of bitsandbytes are turned back into the numbers that they stand for.
    """

    def __init__(self, folder: Path) -> None:
        """Look into the headers of the files; no weight is read.

        Args:
            folder: of a checkpoint with safetensors.

        Raises:
            InputError: if a file cannot be read, or holds no decoder block.
        """
        self.folder = folder
        self._where: dict[str, Path] = {}
        self._names: dict[tuple[int, str], str] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self._where |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                raise InputError(f"weights {path} cannot be read: {error}.") from None
        for name in self._where:
            match = IN_BLOCK.search(name)
            if match and len(self._shape(name)) == 2:
                self._names[int(match[1]), match[2]] = name
        if not self._names:
            raise InputError(f"{folder}: expected a checkpoint with decoder blocks in safetensors, found none.")

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        name = self._names[key]
        weight = self._read(name)
        scale = f"{name.removesuffix('.weight')}.SCB"
        if scale in self._where:
            return weight.float() * self._read(scale).float()[:, None] / 127
        beside = [each for each in self._where if each.startswith(f"{name}.")]
        if any(QUANTISED in each for each in beside):
            return self._four_bit(weight, {each: self._read(each) for each in beside})
        return weight.float()

    def _shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._where[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def _read(self, name: str) -> Tensor:
        with safe_open(self._where[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    @staticmethod
    def _four_bit(weight: Tensor, state: dict[str, Tensor]) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        restored: Tensor = dequantize_4bit(weight, QuantState.from_dict(state, torch.device("cpu")))
        return restored.float()
