"""Looking inside forward passes, and taking them up again half-way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.models.layout import layout


class _SeenAll(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    """Everything that was asked for has been seen."""


def pad(sequences: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Token ids as one right-padded tensor [rows, T].

    No attention mask goes with it: in a causal model the padding comes after, and so cannot reach, any real token.
    """
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.no_grad()
def output_of(model: nn.Module, ids: Tensor, module: nn.Module, cache: Any = None) -> Tensor:
    """What comes out of ``module``, [rows, T, ·], when ``model`` is run on ``ids`` [rows, T] no further than that.

    Args:
        model: a causal language model.
        ids: token ids.
        module: to look behind.
        cache: a cache of the library's, which takes up keys and values on the way.
    """
    seen: list[Tensor] = []

    def after(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)
        raise _SeenAll

    with module.register_forward_hook(after), suppress(_SeenAll):
        model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
    return seen[0]


@torch.no_grad()
def visit(model: nn.Module, ids: Tensor, modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> None:
    """Run ``model`` on ``ids`` [rows, T], no further than needed, and keep nothing of what passes by.

    Args:
        model: a causal language model.
        ids: token ids.
        modules: to look in front of.
        see: is given the number of each module and what goes into it, [rows, T, ·], on the way.
    """
    left = set(range(len(modules)))

    def before(number: int, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        see(number, arguments[0])
        left.discard(number)
        if not left:
            raise _SeenAll

    with ExitStack() as hooks:
        for number, module in enumerate(modules):
            hooks.enter_context(module.register_forward_pre_hook(partial(before, number)))
        with suppress(_SeenAll):
            model(input_ids=ids, use_cache=False)


class Passage:
    """A batch on its way through blocks ``first`` … ``last``, which can be taken up again at any of them.

    Attributes:
        hidden: by number of a block what went into it, [rows, T, h]; ``hidden[last + 1]`` came out of the last one.
        keywords: by number of a block what the model calls it with besides: masks, positions.
    """

    def __init__(self, model: nn.Module, ids: Tensor, first: int, last: int, cache: Any = None) -> None:
        """Run ``model`` on ``ids`` [rows, T] up to block ``last``; ``cache`` is that of :func:`output_of`."""
        self.blocks = layout(model).blocks
        self.last = last
        self.hidden: dict[int, Tensor] = {}
        self.keywords: dict[int, dict[str, Any]] = {}
        with ExitStack() as hooks:
            for number in range(first, last + 1):
                note = partial(self._note, number)
                hooks.enter_context(self.blocks[number].register_forward_pre_hook(note, with_kwargs=True))
            self.hidden[last + 1] = output_of(model, ids, self.blocks[last], cache)

    def _note(self, number: int, block: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        self.hidden[number], self.keywords[number] = arguments[0], keywords

    @torch.no_grad()
    def again(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        for number in range(block, self.last + 1):
            self.hidden[number + 1] = self.blocks[number](self.hidden[number], **self.keywords[number])


@contextmanager
def inputs_at(modules: Sequence[nn.Module], at: tuple[Tensor, Tensor], seen: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Note what goes into ``modules`` at some positions, whenever they are called inside.

    Args:
        modules: of one model.
        at: row and position, [K] each.
        seen: takes up the latest input of each module, [K, ·].
    """

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[module] = arguments[0][at]

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(note))
        yield
