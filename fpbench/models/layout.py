"""The parts of a decoder, found by their structure whatever they are called, and what passes into them."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fpbench.errors import InputError

Result = TypeVar("Result")


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


# What a block is called with, and what it returns.


def call_of(block: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return the hidden states that a block is called with, and everything else by its name, however it was passed."""
    signature = inspect.signature(block.forward)
    bound = signature.bind(*arguments, **keywords).arguments
    named: dict[str, Any] = {}
    for name, value in bound.items():
        named |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named.pop(next(iter(signature.parameters))), named


def stream(output: Any) -> Tensor:
    """Return the hidden states among what a block returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


# Conv1D, GPT-2's linear module, keeps its weight as [in, out].

LINEAR = (nn.Linear, Conv1D)


def inputs(module: nn.Module) -> int:
    """Return the number of inputs of a linear module."""
    return int(module.nx if isinstance(module, Conv1D) else module.in_features)  # type: ignore[arg-type]


def outputs(module: nn.Module) -> int:
    """Return the number of outputs of a linear module."""
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def as_matrix(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """Return the parameter of that name, or any tensor of its shape, with a weight as [out, in]."""
    turned = weight.dim() == 2 and isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
    return weight.T if turned else weight


class TransposedLinear(nn.Linear):
    """A linear module on the numbers of a Conv1D: changes in place of its weight [out, in] are changes of that."""

    def __init__(self, conv: Conv1D) -> None:
        """Share the memory of the weight [in, out]; copy nothing."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = conv.nx, conv.nf
        self.weight = nn.Parameter(conv.weight.detach().T, requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias


@contextmanager
def linear_modules(model: nn.Module) -> Iterator[None]:
    """Have a linear module of the same name and numbers in the place of every Conv1D, until the end."""
    convs = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Conv1D)
    ]
    for parent, name, conv in convs:
        setattr(parent, name, TransposedLinear(conv))
    try:
        yield
    finally:
        for parent, name, conv in convs:
            linear: Any = getattr(parent, name)
            setattr(parent, name, conv)
            if linear.weight.data_ptr() != conv.weight.data_ptr():  # it was given other memory
                conv.weight.data.copy_(linear.weight.detach().T)


def on_linear_modules(inject: Callable[..., Result]) -> Callable[..., Result]:
    """Call a method's ``inject`` inside :func:`linear_modules` of its model."""

    @wraps(inject)
    def injected(method: Any, model: nn.Module, *arguments: Any, **keywords: Any) -> Result:
        with linear_modules(model):
            return inject(method, model, *arguments, **keywords)

    return injected


# The parts of a decoder.

ATTENTION, NORM = re.compile("attention", re.I), re.compile("norm", re.I)
# Classes of modules inside a block for whose models no method is defined.
EXPERTS = re.compile(r"Expert|MoE|Moe|Router")
RECURRENT = re.compile(r"Mamba|SSM|Rwkv|RWKV|Recurrent|DeltaNet|ShortConv|LinearAttention|LSTM")


@dataclass(frozen=True)
class FFN:
    """The linear modules of one block's FFN, by their names inside the block."""

    down: str  # the output projection, [h, d]
    up: str  # [d, h], or gate and up in one, [2 d, h]
    gate: str | None  # [d, h]; the same as ``up`` where both are one; ``None`` where the FFN has no gate


@dataclass(frozen=True)
class Layout:
    """The modules of one decoder, L blocks of hidden size h and FFN width d."""

    kind: str  # the architecture, config.model_type
    config: Any  # of the text model
    name: str  # of the list of blocks, such as ``model.layers``
    blocks: list[nn.Module]  # the L decoder blocks, in order
    norm: nn.Module  # the normalisation before the head
    head: nn.Module  # the linear map [V, h] to logits; may share its weight with the embedding
    embedding: nn.Module  # the input embedding [V, h]

    def between(self, low: float, high: float) -> list[int]:
        """The numbers ℓ of the blocks with low ≤ ℓ/L < high."""
        count = len(self.blocks)
        return [block for block in range(count) if low <= block / count < high]

    def ffn(self, block: int) -> FFN:
        """Find the FFN of a block: its linear modules outside attention, of which one leads to h outputs.

        Raises:
            InputError: if there is none, or more than one.
        """
        hidden = int(self.config.hidden_size)
        attention = [name for name, module in self.blocks[block].named_modules() if ATTENTION.search(_class(module))]
        linears = {
            name: module
            for name, module in self.blocks[block].named_modules()
            if isinstance(module, LINEAR) and not any(name.startswith(f"{each}.") for each in attention)
        }
        down = [name for name, module in linears.items() if outputs(module) == hidden != inputs(module)]
        if not down:  # d = h: the last one
            down = [name for name, module in linears.items() if outputs(module) == hidden][-1:]
        width = inputs(linears[down[0]]) if down else 0
        up = [name for name in linears if name not in down and inputs(linears[name]) == hidden]
        widths = [outputs(linears[name]) for name in up]
        if len(down) != 1 or len(up) + 1 != len(linears) or widths not in ([width], [width, width], [2 * width]):
            found = ", ".join(f"{name} [{outputs(each)}, {inputs(each)}]" for name, each in linears.items())
            raise InputError(
                f"model type {self.kind!r}: {self.name}.{block} must have one plain or gated FFN of linear modules "
                f"besides attention, found {found or 'no linear module'}."
            )
        gates = [name for name in up if "gate" in name]
        if len(up) == 1:
            return FFN(down[0], up[0], up[0] if widths == [2 * width] else None)
        gate = gates[0] if len(gates) == 1 else up[0]
        return FFN(down[0], next(name for name in up if name != gate), gate)

    def projection_name(self, projection: str, block: int) -> str | None:
        """Name the linear module that is a block's ``gate_proj``, ``up_proj`` or ``down_proj``; ``None`` for no gate.

        Such as ``model.layers.3.mlp.gate_proj``; where gate and up are one module it is both.
        """
        name: str | None = getattr(self.ffn(block), projection.removesuffix("_proj"))
        return None if name is None else f"{self.name}.{block}.{name}"

    def down_proj_name(self, block: int) -> str:
        """Name the FFN output projection of a block, such as ``model.layers.3.mlp.down_proj``."""
        return f"{self.name}.{block}.{self.ffn(block).down}"

    def down_proj(self, block: int) -> nn.Linear:
        """Return the FFN output projection of a block; its weight is [h, d], inside :func:`linear_modules`.

        Raises:
            InputError: if its weight is not plain numbers.
        """
        module: Any = self.blocks[block].get_submodule(self.ffn(block).down)
        if not module.weight.is_floating_point():
            raise InputError(
                f"{self.down_proj_name(block)} must be a plain linear module, found {_class(module)} of "
                f"{module.weight.dtype}: edit the model before it is quantised."
            )
        linear: nn.Linear = module
        return linear

    def logits(self, normalised: Tensor) -> Tensor:
        """Return the logits [·, V] float32 of normalised hidden states [·, h], scaled and capped as the model does."""
        logits: Tensor = self.head(normalised).float()
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        return logits


def layout(model: Any) -> Layout:
    """Find the parts of ``model``, a decoder with attention and one FFN in each block, by their structure.

    Raises:
        InputError: naming the architecture and what is missing, for any other model.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"expected a decoder of transformers, found {_class(model)}.")
    kind, text = model.config.model_type, model.config.get_text_config()

    def refused(reason: str) -> InputError:
        return InputError(f"model type {kind!r} cannot be edited: {reason}.")

    if getattr(model.config, "is_encoder_decoder", False):
        raise refused("it is an encoder and a decoder, expected a decoder alone")
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise refused("it has no head that predicts tokens")
    count = getattr(text, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in decoder.named_children()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise refused(f"its decoder must have one list of {count} blocks, found {len(lists)}")
    (own, blocks) = lists[0]
    inside = {_class(module) for module in blocks.modules()} - {_class(blocks)}
    if experts := sorted(filter(EXPERTS.search, inside), key=lambda name: ("Experts" not in name, name)):
        raise refused(f"it is a mixture of experts ({experts[0]}), whose FFN is another for every token")
    recurrent = sorted(name for name in inside if RECURRENT.search(name))
    if recurrent or not all(any(ATTENTION.search(_class(each)) for each in block.modules()) for block in blocks):
        example = recurrent[0] if recurrent else _class(blocks[0])
        raise refused(f"it has blocks without attention ({example}), as state-space and recurrent models do")
    if inputs(head) != text.hidden_size:
        raise refused(f"its head reads {inputs(head)} numbers of a token and its blocks put out {text.hidden_size}")
    norms = [module for module in decoder.children() if NORM.search(_class(module))]
    if not norms:
        raise refused("its decoder has no normalisation before the head")
    (prefix,) = [name for name, module in model.named_modules() if module is decoder]
    embedding: Any = model.get_input_embeddings()
    return Layout(kind, text, f"{prefix}.{own}".lstrip("."), list(blocks), norms[-1], head, embedding)


def _class(module: Any) -> str:
    return type(module).__name__
