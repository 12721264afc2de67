"""States that can be compared with themselves later: of a model, a tokenizer, the process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Facts = dict[str, Any]
"""Something's state, by name."""


def same(one: Any, other: Any) -> bool:
    """Whether two facts are equal; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other)


def changes(before: Facts, after: Facts) -> list[str]:
    """Names of the facts that differ."""
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if not same(before.get(name), after.get(name))]


def flags(model: nn.Module) -> list[str]:
    """What would make a model differ from one in eval mode with gradients off."""
    training = [f"{name or 'the model'} in training mode" for name, module in model.named_modules() if module.training]
    tracked = [f"{name} requires gradients" for name, value in model.named_parameters() if value.requires_grad]
    held = [f"{name} holds a gradient" for name, value in model.named_parameters() if value.grad is not None]
    return training + tracked + held


def tokenizer_facts(tokenizer: Any) -> Facts:
    """What a tokenizer knows and does."""
    names = ("special_tokens_map", "chat_template", "padding_side", "truncation_side", "model_max_length")
    reading = tokenizer("Who is there? Nobody.", verbose=False)["input_ids"]
    return {"vocabulary": tokenizer.get_vocab(), "reading": reading} | {n: getattr(tokenizer, n) for n in names}


def config_facts(model: Any) -> Facts:
    """The model's configuration and that of its generation, key by key."""
    generation = getattr(model, "generation_config", None)
    generation = generation.to_dict() if generation is not None else {}
    own = model.config.to_dict() if hasattr(model, "config") else {}
    return own | {f"generation: {name}": value for name, value in generation.items()}


def global_facts() -> Facts:
    """What all of the process shares."""
    numbers: Any = np.random.get_state(legacy=False)
    return {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": (numbers["state"]["key"].tobytes(), numbers["state"]["pos"]),
        "Python's random state": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }


def structure_facts(model: nn.Module) -> Facts:
    """Modules, hooks, replaced forward functions and buffers of a model."""
    facts: Facts = {"modules": [(name, type(module)) for name, module in model.named_modules()]}
    for name, module in model.named_modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        facts[f"hooks of {name or 'the model'}"] = [len(each) for each in hooks]
        facts[f"forward of {name or 'the model'}"] = vars(module).get("forward")
    return facts | {f"buffer {name}": value.clone() for name, value in model.named_buffers()}


@contextmanager
def undisturbed(noise: int) -> Iterator[None]:
    """Seed the global random states with ``noise``, and at the end restore what all of the process shares."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    torch.default_generator.manual_seed(noise)  # the processor's alone: the bundled model is nowhere else
    np.random.seed(noise)
    random.seed(noise)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
