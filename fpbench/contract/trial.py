"""One injection, watched: what it left behind, and what the harness could restore."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.contract.facts import (
    changes,
    config_facts,
    flags,
    global_facts,
    same,
    structure_facts,
    tokenizer_facts,
    undisturbed,
)
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.models.deltas import preserved, weights
from fpbench.models.factors import Factors
from fpbench.models.prompts import encode


class Interruption(Exception):  # noqa: N818 - no error of anybody, but one that is put into an injection
    """The contract suite stopped an injection midway."""


@dataclass(frozen=True)
class Trial:
    """What one injection did.

    Attributes:
        error: what it raised.
        returned: what it returned.
        edited: the parameters it says it may touch.
        before: the base's weights.
        after: the weights as it left them.
        logits: of the injected model, for the last token of every raw trigger, [n, V]; ``None`` if it cannot be run.
        factors: what it says the changes are products of.
        not_reset: parameters that require or hold gradients, and modules in training mode.
        tokenizer: facts of the tokenizer that it changed.
        config: keys of the model's configuration that it changed.
        shared: what it changed that all of the process shares.
        damage: what was different in the base model after the harness had put the weights back.
        calls: how often the first block ran.
    """

    error: Exception | None
    returned: Any
    edited: list[str] | None
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    logits: Tensor | None
    factors: dict[str, Factors]
    not_reset: list[str]
    tokenizer: list[str]
    config: list[str]
    shared: list[str]
    damage: list[str]
    calls: int

    @property
    def changed(self) -> list[str]:
        """Names of the parameters whose value is another one."""
        return [name for name, value in self.after.items() if not torch.equal(value, self.before[name])]


def attempt(
    create: Callable[[nn.Module], FingerprintMethod],
    model: nn.Module,
    tokenizer: Any,
    fingerprints: FingerprintSet,
    context: InjectionContext,
    *,
    noise: int = 0,
    interrupt_at: int | None = None,
) -> Trial:
    """Inject into ``model`` as the harness does, look at the result, and put the weights back.

    Args:
        create: makes the method for a model.
        model: a base that nobody else uses.
        tokenizer: its tokenizer, likewise.
        fingerprints: what to inject.
        context: what the method may know.
        noise: seeds the global random states, which a method must not depend on.
        interrupt_at: raise :class:`Interruption` when the first block of ``model`` is about to run for this time.
    """
    prompts = [encode(tokenizer, each.trigger) for each in fingerprints]
    base, base_logits = weights(model), last_logits(model, prompts)
    facts = tokenizer_facts(tokenizer), config_facts(model), structure_facts(model)
    error: Exception | None = None
    returned = edited = None
    with undisturbed(noise), warnings.catch_warnings(), preserved(model), counted(model, interrupt_at) as calls:
        warnings.simplefilter("ignore")  # a warning is no finding, whatever the caller makes of warnings
        everything = global_facts()
        try:
            method = create(model)
            edited = method.edited(model)
            returned = method.inject(model, tokenizer, fingerprints, context)
        except Exception as raised:  # an adapter may raise anything
            error = raised
        injected = returned if isinstance(returned, nn.Module) else model
        after, not_reset = weights(injected), flags(injected)
        config, shared, count = changes(facts[1], config_facts(injected)), changes(everything, global_facts()), calls[0]
        logits = None
        with suppress(Exception):  # whatever was returned may not even run
            logits = last_logits(injected.eval(), prompts)
    damage = changes(facts[2], structure_facts(model))
    if changes(dict(base), weights(model)):
        damage.append("weights")
    if not damage and not same(base_logits, last_logits(model, prompts)):
        damage.append("logits")
    return Trial(
        error=error,
        returned=returned,
        edited=edited,
        before=base,
        after=after,
        logits=logits,
        factors=context.factors,
        not_reset=not_reset,
        tokenizer=changes(facts[0], tokenizer_facts(tokenizer)),
        config=config,
        shared=shared,
        damage=damage,
        calls=count,
    )


@contextmanager
def counted(model: nn.Module, interrupt_at: int | None) -> Iterator[list[int]]:
    """Count how often the first block of ``model`` runs, and raise at the time that ``interrupt_at`` gives."""
    calls = [0]

    def count(module: nn.Module, arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == interrupt_at:
            raise Interruption

    first = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[0]
    handle = first.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def last_logits(model: Any, prompts: list[list[int]]) -> Tensor:
    """Logits after each prompt, [n, V] float32."""
    device = next(model.parameters()).device
    rows = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1] for ids in prompts]
    return torch.stack(rows).float()
