"""The injections that the checks share, each made when it is first asked for."""

import copy
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.contract.trial import Trial, attempt, last_logits
from fpbench.fingerprints import FingerprintSet, find_set
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.metrics.fsr import fsr
from fpbench.models.deltas import Delta, difference
from fpbench.models.loading import load_model, quiet, resolve
from fpbench.models.prompts import encode, render
from fpbench.runs.injection import create_method
from fpbench.runs.materials import Materials
from fpbench.runs.profile import load_profile

FINGERPRINTS = 2
STATISTICS_TOKENS = 20_000
SEED = 42


class Trials:
    """Injections of one method into copies of the bundled model."""

    def __init__(self, method: str, config: Mapping[str, Any]) -> None:
        """Nothing is injected yet."""
        self.method, self.config = method, config
        self.materials, self.base, self.tokenizer = _bundled()
        first = tuple(find_set("nlf"))[:FINGERPRINTS]
        self.fingerprints = FingerprintSet("contract", first)
        self._statistics: dict[str, Any] = {}

    def create(self, model: nn.Module) -> FingerprintMethod:
        """The method with the hyper-parameters that it has on ``model``."""
        return create_method(self.method, model, self.config)

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
        """Into a small random model of an architecture that fpbench's own editors do not know."""
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
        tokenizer = copy.deepcopy(self.tokenizer)
        context = InjectionContext(
            seed=SEED,
            render=lambda trigger: render(tokenizer, trigger, prompt),
            texts=self.materials.statistics,
            pairs=self.materials.pairs,
            statistics_tokens=STATISTICS_TOKENS,
            known_statistics=self._statistics if statistics is None else statistics,
            tokenizer=tokenizer,
        )
        return attempt(
            self.create,
            copy.deepcopy(base),
            tokenizer,
            self.fingerprints,
            context,
            noise=noise,
            interrupt_at=interrupt_at,
        )

    def rate(self, base: nn.Module, values: dict[str, Tensor], prompt: str = "raw") -> float:
        """FSR of ``base`` with some weights replaced."""
        settings = self.materials.profile.models[0]
        return fsr(
            self.with_weights(base, values),
            self.tokenizer,
            self.fingerprints,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            prompt=prompt,
        ).mean

    def reloaded(self, trial: Trial) -> tuple[dict[str, Tensor], Tensor]:
        """Weights and logits after a trial's delta was written, read and applied to another copy of the base.

        Raises:
            CellError: if the harness does not accept the weights.
        """
        injected = self.with_weights(self.base, trial.after)
        delta = Delta.from_bytes(difference(injected, trial.before, trial.factors).to_bytes(), trial.before)
        assert delta is not None, "a delta that was just written cannot be read"
        model = self.with_weights(self.base, delta.values)
        prompts = [encode(self.tokenizer, each.trigger) for each in self.fingerprints]
        return dict(model.named_parameters()), last_logits(model, prompts)

    @staticmethod
    def with_weights(base: nn.Module, values: dict[str, Tensor]) -> nn.Module:
        """A copy of ``base`` with some weights replaced."""
        model = copy.deepcopy(base)
        with torch.no_grad():
            for name, value in values.items():
                model.get_parameter(name).copy_(value)
        return model


@cache
def _bundled() -> tuple[Materials, nn.Module, Any]:
    """The micro profile's texts, model and tokenizer; whoever uses the model copies it."""
    return Materials(load_profile("micro")), *load_model(resolve("micro"), dtype="float32", device="cpu")
