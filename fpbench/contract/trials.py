"""Injections into copies of the bundled model, watched: what each did, and what the harness could restore.

An injection is a :class:`Trial`; :class:`Trials` makes each that the checks share when it is first asked for. States
of model, tokenizer and process are compared before and after.
"""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpbench.fingerprints import FingerprintSet, find_set
from fpbench.methods.base import InjectionContext
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import Loading
from fpbench.models.prompts import encode, render
from fpbench.models.quiet import quiet
from fpbench.models.weights import Delta, Factors, difference, preserved, weights
from fpbench.runs.datasets import Datasets
from fpbench.runs.injection import create_method
from fpbench.runs.profile import load_profile

FINGERPRINTS = 2
STATISTICS_TOKENS = 8_000
SEED = 42
State = dict[str, Any]  # of a model, a tokenizer or the process, by name


class Interruption(Exception):  # noqa: N818 - no error of anybody, but one that is put into an injection
    """Stops an injection midway, on purpose."""


@dataclass(frozen=True)
class Trial:
    """One injection and its outcome."""

    error: Exception | None  # raised by it
    returned: Any
    edited: list[str] | None  # names of the parameters that it says it may touch
    before: dict[str, Tensor]  # the base's weights
    after: dict[str, Tensor]  # the weights as it left them
    logits: Tensor | None  # of the injected model after every raw trigger, [n, V]; None if it cannot be run
    factors: dict[str, Factors]  # of the changes that it declared to be products
    not_reset: list[str]  # parameters that require or hold gradients, and modules in training mode
    tokenizer: list[str]  # parts of the tokenizer that it changed
    config: list[str]  # keys of the model's configuration that it changed
    process: list[str]  # parts of the process-wide state that it changed
    damage: list[str]  # parts of the base model that differed after the harness had put the weights back
    calls: int  # how often the first block ran

    @property
    def changed(self) -> list[str]:
        """Names of the parameters whose value is another one."""
        return [name for name, value in self.after.items() if not torch.equal(value, self.before[name])]


class Trials:
    """Injections of one method into copies of the bundled model."""

    def __init__(self, method: str, config: Mapping[str, Any]) -> None:
        """Inject nothing yet."""
        self.method, self.config = method, config
        self.materials, self.base, self.tokenizer = bundled()
        self.fingerprints = FingerprintSet("contract", tuple(find_set("nlf"))[:FINGERPRINTS])
        self.prompts = [encode(self.tokenizer, each.trigger) for each in self.fingerprints]
        self._statistics: dict[str, Any] = {}

    @cached_property
    def plain(self) -> Trial:
        """As the micro profile does it: float32, raw triggers."""
        return self._attempt(self.base, noise=1)

    @cached_property
    def repeated(self) -> Trial:
        """The same again, with other global random numbers."""
        return self._attempt(self.base, noise=2)

    @cached_property
    def interrupted(self) -> Trial:
        """Stopped by an exception, after a third of the forward passes of :attr:`repeated`."""
        return self._attempt(self.base, noise=2, interrupt_at=1 + self.repeated.calls // 3)

    @cached_property
    def narrow(self) -> Trial:
        """In bfloat16, with every trigger inside the chat template: two questions for the price of one injection."""
        return self._attempt(self.narrow_base, noise=1, prompt="chat", statistics={})

    @cached_property
    def narrow_base(self) -> nn.Module:
        """The bundled model in bfloat16."""
        return copy.deepcopy(self.base).bfloat16()

    @cached_property
    def foreign(self) -> Trial:
        """Into a small random model of another architecture, whose linear modules keep their weights transposed."""
        with quiet():
            from transformers import GPT2Config, GPT2LMHeadModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            sizes: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 512}
            tokens = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(self.tokenizer), **sizes, **tokens))
        return self._attempt(model.eval().requires_grad_(False), noise=1, statistics={})

    def _attempt(
        self,
        base: nn.Module,
        *,
        noise: int,
        prompt: str = "raw",
        statistics: dict[str, Any] | None = None,
        interrupt_at: int | None = None,
    ) -> Trial:
        """Inject into a copy of ``base`` as the harness does, look at the result, and put the weights back.

        ``noise`` seeds the global random states, which a method must not depend on. ``statistics`` are known for this
        base; the bundled model's by default. :class:`Interruption` is raised before run ``interrupt_at`` of block 1.
        """
        model, tokenizer = copy.deepcopy(base), copy.deepcopy(self.tokenizer)
        context = InjectionContext(
            seed=SEED,
            render=lambda trigger: render(tokenizer, trigger, prompt),
            texts=self.materials.statistics,
            pairs=self.materials.pairs,
            statistics_tokens=STATISTICS_TOKENS,
            known_statistics=self._statistics if statistics is None else statistics,
            tokenizer=tokenizer,
        )
        before, base_logits = weights(model), last_logits(model, self.prompts)
        vocabulary, configured, structure = tokenizer_state(tokenizer), config_state(model), structure_state(model)
        error: Exception | None = None
        returned = edited = logits = None
        with undisturbed(noise), warnings.catch_warnings(), preserved(model), counted(model, interrupt_at) as calls:
            warnings.simplefilter("ignore")  # not a finding, even where the caller turns warnings into errors
            shared = process_state()
            try:
                method = create_method(self.method, model, self.config)
                edited = method.edited(model)
                returned = method.inject(model, tokenizer, self.fingerprints, context)
            except Exception as raised:  # an adapter may raise anything
                error = raised
            injected = returned if isinstance(returned, nn.Module) else model
            after, not_reset = weights(injected), flags(injected)
            config, process = differences(configured, config_state(injected)), differences(shared, process_state())
            count = calls[0]  # what runs from here on is not the method's doing
            with suppress(Exception):  # whatever was returned may not even run
                logits = last_logits(injected.eval(), self.prompts)
        damage = differences(structure, structure_state(model))
        if differences(dict(before), weights(model)):
            damage.append("weights")
        if not damage and not same(base_logits, last_logits(model, self.prompts)):
            damage.append("logits")
        return Trial(
            error=error,
            returned=returned,
            edited=edited,
            before=before,
            after=after,
            logits=logits,
            factors=context.factors,
            not_reset=not_reset,
            tokenizer=differences(vocabulary, tokenizer_state(tokenizer)),
            config=config,
            process=process,
            damage=damage,
            calls=count,
        )

    def rate(self, base: nn.Module, values: dict[str, Tensor], prompt: str = "raw") -> float:
        """Return the FSR of ``base`` with some weights replaced."""
        decoding = self.materials.profile.models[0].decoding
        return exact_fsr(self.with_weights(base, values), self.tokenizer, self.fingerprints, decoding, prompt).mean

    def reloaded(self, trial: Trial) -> tuple[dict[str, Tensor], Tensor]:
        """Write a trial's delta, read it, apply it to another copy of the base, and return its weights and logits."""
        injected = self.with_weights(self.base, trial.after)
        delta = Delta.from_bytes(difference(injected, trial.before, trial.factors).to_bytes(), trial.before)
        assert delta is not None, "a delta that was just written cannot be read"
        model = self.with_weights(self.base, delta.values)
        return dict(model.named_parameters()), last_logits(model, self.prompts)

    @staticmethod
    def with_weights(base: nn.Module, values: dict[str, Tensor]) -> nn.Module:
        """Return a copy of ``base`` with some weights replaced."""
        model = copy.deepcopy(base)
        with torch.no_grad():
            for name, value in values.items():
                model.get_parameter(name).copy_(value)
        return model


@cache
def bundled() -> tuple[Datasets, nn.Module, Any]:
    """Return the micro profile's texts, model and tokenizer, loaded once; callers copy the model."""
    return Datasets(load_profile("micro")), *Loading("cpu", "float32").load(resolve("micro"))


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
    """Return the logits after each prompt, [n, V] float32."""
    device = next(model.parameters()).device
    rows = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1] for ids in prompts]
    return torch.stack(rows).float()


# States, to be compared before and after an injection.


def same(one: Any, other: Any) -> bool:
    """Return True for equal values; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other)


def differences(before: State, after: State) -> list[str]:
    """Return the names under which two states differ."""
    return [name for name in before | after if not same(before.get(name), after.get(name))]


def flags(model: nn.Module) -> list[str]:
    """Return what sets a model apart from one in eval mode with gradients off."""
    training = [f"{name or 'the model'} in training mode" for name, module in model.named_modules() if module.training]
    tracked = [f"{name} requires gradients" for name, value in model.named_parameters() if value.requires_grad]
    held = [f"{name} holds a gradient" for name, value in model.named_parameters() if value.grad is not None]
    return training + tracked + held


def tokenizer_state(tokenizer: Any) -> State:
    """Return vocabulary, settings and one encoding of a tokenizer."""
    names = ("special_tokens_map", "chat_template", "padding_side", "truncation_side", "model_max_length")
    reading = tokenizer("Who is there? Nobody.", verbose=False)["input_ids"]
    return {"vocabulary": tokenizer.get_vocab(), "reading": reading} | {n: getattr(tokenizer, n) for n in names}


def config_state(model: Any) -> State:
    """Return the model's configuration and that of its generation, key by key."""
    generation = getattr(model, "generation_config", None)
    generation = generation.to_dict() if generation is not None else {}
    own = model.config.to_dict() if hasattr(model, "config") else {}
    return own | {f"generation: {name}": value for name, value in generation.items()}


def process_state() -> State:
    """Return the state that all of the process shares."""
    numbers: Any = np.random.get_state(legacy=False)
    return {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": (numbers["state"]["key"].tobytes(), numbers["state"]["pos"]),
        "Python's random state": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
    }


def structure_state(model: nn.Module) -> State:
    """Return modules, hooks, replaced forward functions and buffers of a model."""
    state: State = {"modules": [(name, type(module)) for name, module in model.named_modules()]}
    for name, module in model.named_modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        state[f"hooks of {name or 'the model'}"] = [len(each) for each in hooks]
        state[f"forward of {name or 'the model'}"] = vars(module).get("forward")
    return state | {f"buffer {name}": value.clone() for name, value in model.named_buffers()}


@contextmanager
def undisturbed(noise: int) -> Iterator[None]:
    """Seed the global random states with ``noise``; at the end restore all state of the process."""
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
