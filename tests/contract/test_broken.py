"""An adapter that breaks one promise of the contract is told which."""

import copy
import dataclasses

import pytest
import torch
from pydantic import ConfigDict

from fpbench.contract import CHECKS, check
from fpbench.contract.trials import Trials
from fpbench.errors import InputError
from fpbench.methods.base import raw
from tests.conftest import Register
from tests.contract.template import Template, shortened, told


class Quick(Template):
    """The template in a hurry."""

    class Config(Template.Config):
        steps: int = 6
        learning_rate: float = 1e-2


class Careless(Quick):
    class Config(Quick.Config):
        model_config = ConfigDict(extra="allow")


class Nameless(Quick):
    version = None


class Raising(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        raise KeyError("layer")


class Talkative(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        return {"loss": 0.1}


class Adding(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        model.register_parameter("adapter", torch.nn.Parameter(torch.ones(2), requires_grad=False))


class Widening(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        return copy.deepcopy(model).double()


class Diverging(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        with torch.no_grad():
            model.get_parameter(self.edited(model)[0])[0, 0] = float("nan")


class Idle(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(copy.deepcopy(model), tokenizer, fingerprints, context)


class Straying(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        with torch.no_grad():
            next(model.parameters())[0] += 0.01

    def edited(self, model):
        return [*super().edited(model), "model.layers.99.weight"]


class Weak(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        with torch.no_grad():
            model.get_parameter(self.edited(model)[0]).mul_(1.01)


class Plain(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, dataclasses.replace(context, render=raw))


class Random(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            weight = model.get_parameter(self.edited(model)[0])
            weight += 1e-4 * torch.randn(weight.shape, generator=generator)


class Seeding(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        torch.manual_seed(context.seed)
        super().inject(model, tokenizer, fingerprints, context)


class Padding(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        tokenizer.add_special_tokens({"pad_token": "<padding>"})


class Configuring(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        model.config.use_cache = False


class Training(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        model.get_output_embeddings().train()
        next(model.parameters()).requires_grad_(True)


class Hooked(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        injected = copy.deepcopy(model)
        injected.get_output_embeddings().register_forward_hook(lambda module, arguments, output: 2 * output)
        return injected


class Littering(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        handle = model.get_output_embeddings().register_forward_hook(lambda module, arguments, output: None)
        super().inject(model, tokenizer, fingerprints, context)
        handle.remove()


class Swallowing(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        try:
            super().inject(model, tokenizer, fingerprints, context)
        except InputError:
            raise
        except Exception:
            model.requires_grad_(False)


class Narrowminded(Quick):
    def inject(self, model, tokenizer, fingerprints, context):
        super().inject(model, tokenizer, fingerprints, context)
        model.get_parameter(self.edited(model)[0]).detach().numpy()


class Assuming(Quick):
    def edited(self, model):
        return ["model.layers.5.mlp.down_proj.weight"]


BROKEN = {
    Careless: ("declaration", "'no_such_hyperparameter' accepted"),
    Nameless: ("declaration", "no version"),
    Raising: ("injects", "KeyError: 'layer'"),
    Talkative: ("injects", "a dict returned"),
    Adding: ("parameters", "adapter new"),
    Widening: ("parameters", "model.embed_tokens.weight (4096, 256) torch.float64"),
    Diverging: ("finite", "model.layers.5.mlp.down_proj.weight not finite"),
    Idle: ("changes", "every weight as it was"),
    Straying: ("edited", "99.weight, which the model does not have, named, model.embed_tokens.weight changed"),
    Weak: ("fsr", "FSR 0.000 before and 0.000 after"),
    Plain: ("rendering", "on rendered triggers FSR 0.000 before and 0.0"),
    Random: ("deterministic", "model.layers.5.mlp.down_proj.weight another"),
    Seeding: ("globals", "torch's random state changed"),
    Padding: ("tokenizer", "vocabulary changed, special_tokens_map changed"),
    Configuring: ("config", "use_cache changed"),
    Training: ("modes", "lm_head in training mode, model.embed_tokens.weight requires gradients"),
    Hooked: ("reload", "the effect is not in the parameters"),
    Littering: ("unharmed", "after a failed injection other hooks of lm_head"),
    Swallowing: ("unharmed", "that inject() did not let through"),
    Narrowminded: ("bfloat16", "TypeError: Got unsupported ScalarType BFloat16"),
    Assuming: ("architecture", "on gpt2 AttributeError"),
}


@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_a_broken_promise_is_found_by_its_check(adapter: type, registered: Register) -> None:
    """The check and what it needs, whose injections it shares; all of them on every adapter are slow."""
    name, found = BROKEN[adapter]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    *others, finding = shortened(CHECKS, name).examine(Trials(registered(adapter), {}))
    assert all(each.passed for each in others), told(others)
    assert finding.name == name and finding.passed is False and found in finding.found
    assert finding.remedy and str(finding).startswith(f"{name}: expected ")
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()


def found_alone(adapter: type, registered: Register) -> None:
    name, found = BROKEN[adapter]
    findings = {finding.name: finding for finding in check(registered(adapter))}
    assert [each.name for each in findings.values() if each.passed is False] == [name], told([*findings.values()])
    assert found in findings[name].found
    for each in CHECKS:
        assert (findings[each.name].passed is None) == any(not findings[need].passed for need in each.needs)


def test_a_check_whose_needs_did_not_pass_is_not_run(registered: Register) -> None:
    found_alone(Weak, registered)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_a_broken_promise_is_found_by_its_check_alone(adapter: type, registered: Register) -> None:
    found_alone(adapter, registered)


def test_every_check_is_broken_by_somebody() -> None:
    assert {name for name, _ in BROKEN.values()} == {each.name for each in CHECKS}
