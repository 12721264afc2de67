"""The parts of a decoder, by one table of module names per architecture, and what passes into them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fpbench.errors import InputError


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside a forward pass to end it, once what was looked for has passed; whoever raises it catches it."""


@contextmanager
def watched(modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with the number of each module and what goes into it, [rows, T, ·], before it is run."""

    def before(number: int, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        see(number, arguments[0])

    with ExitStack() as hooks:
        for number, module in enumerate(modules):
            hooks.enter_context(module.register_forward_pre_hook(partial(before, number)))
        yield


def context_length(model: Any) -> int | None:
    """Return the number of positions the model was made for; ``None`` if its config names no limit."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


@dataclass(frozen=True)
class Names:
    """Module names of one architecture; ``ffn`` is relative to a block, the others to the model."""

    blocks: str
    ffn: str
    norm: str
    head: str
    embedding: str


_LLAMA = Names("model.layers", "mlp", "model.norm", "lm_head", "model.embed_tokens")
NAMES = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}


@dataclass(frozen=True)
class Layout:
    """The modules of one decoder, L blocks of hidden size h and FFN width d."""

    names: Names
    blocks: list[nn.Module]  # the L decoder blocks, in order
    norm: nn.Module  # the normalisation before the head
    head: nn.Module  # the linear map [V, h] to logits; may share its weight with the embedding
    embedding: nn.Module  # the input embedding [V, h]

    def between(self, low: float, high: float) -> list[int]:
        """The numbers ℓ of the blocks with low ≤ ℓ/L < high."""
        count = len(self.blocks)
        return [block for block in range(count) if low <= block / count < high]

    def projection_name(self, projection: str, block: int) -> str:
        """Name a linear module of a block's FFN, such as ``model.layers.3.mlp.gate_proj``."""
        return f"{self.names.blocks}.{block}.{self.names.ffn}.{projection}"

    def down_proj_name(self, block: int) -> str:
        """Name the FFN output projection of a block, such as ``model.layers.3.mlp.down_proj``."""
        return self.projection_name("down_proj", block)

    def down_proj(self, block: int) -> nn.Linear:
        """Return the FFN output projection of a block; its weight is [h, d]."""
        module = self.blocks[block].get_submodule(f"{self.names.ffn}.down_proj")
        if not isinstance(module, nn.Linear):
            raise InputError(
                f"{self.down_proj_name(block)} must be a plain linear module, found {type(module).__name__}."
            )
        return module


def layout(model: Any) -> Layout:
    """Find the parts of ``model`` by its ``model_type``.

    Raises:
        InputError: for an architecture that is not in the table.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in NAMES:
        raise InputError(f"model type {kind!r} is not supported: expected one of {', '.join(NAMES)}.")
    names = NAMES[kind]
    parts = [model.get_submodule(name) for name in (names.norm, names.head, names.embedding)]
    return Layout(names, list(model.get_submodule(names.blocks).children()), *parts)
