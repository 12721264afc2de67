"""Looking inside one forward pass."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn


class _SeenAll(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    """Everything that was asked for has been seen."""


def pad(sequences: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Token ids as one right-padded tensor [rows, T].

    No attention mask goes with it: in a causal model the padding comes after, and so cannot reach, any real token.
    """
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.no_grad()
def observe(
    model: nn.Module, ids: Tensor, *, inputs_of: Sequence[nn.Module] = (), outputs_of: Sequence[nn.Module] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Run ``model`` on ``ids`` [rows, T], no further than needed.

    Returns:
        What went into every module of ``inputs_of`` and what came out of every module of ``outputs_of``, [rows, T, ·].
    """
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def stop_when_done() -> None:
        if len(inputs) == len(inputs_of) and len(outputs) == len(outputs_of):
            raise _SeenAll

    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs[module] = arguments[0]
        stop_when_done()

    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[module] = output
        stop_when_done()

    with ExitStack() as hooks:
        for module in inputs_of:
            hooks.enter_context(module.register_forward_pre_hook(before))
        for module in outputs_of:
            hooks.enter_context(module.register_forward_hook(after))
        with suppress(_SeenAll):
            model(input_ids=ids, use_cache=False)
    return [inputs[module] for module in inputs_of], [outputs[module] for module in outputs_of]
