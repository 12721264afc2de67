"""The six methods on a real model: what they promise, and nothing else changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.hyperparameters import defaults
from fpbench.metrics.fsr import FSR, fsr
from fpbench.registry import METHODS

EDITORS = ["alphaedit", "fpedit", "mcedit_a"]
TRAJECTORIES = ["rledit", "mcedit_r"]
# Few and long steps that teach this model the set, at a price in perplexity that does not matter here.
SHORT = {
    "lora": {"epochs": 5, "learning_rate": 2e-3},
    "rledit": {"steps": 25, "rate": 3e-4},
    "mcedit_r": {"steps": 20, "rate": 1e-3},
}
MakeContext = Callable[[], InjectionContext]


def make(name: str, **config: Any) -> Any:
    return METHODS.get(name)(**(defaults(name, "small") | SHORT.get(name, {}) | config))


def rate(model: Any, tokenizer: Any, pairs: FingerprintSet) -> FSR:
    return fsr(model, tokenizer, pairs, temperature=0.6, top_p=0.9, top_k=50)


def injected(name: str, stories: Any, pairs: FingerprintSet, context: InjectionContext, **config: Any) -> Any:
    model = copy.deepcopy(stories[0])
    assert make(name, **config).inject(model, stories[1], pairs, context) is None
    return model


@pytest.fixture(scope="module", params=["lora", *EDITORS, *TRAJECTORIES])
def result(request: pytest.FixtureRequest, stories: Any, stories_set: FingerprintSet, context: MakeContext) -> Any:
    return request.param, injected(request.param, stories, stories_set, context())


def test_the_base_does_not_know_the_fingerprints(stories: Any, stories_set: FingerprintSet) -> None:
    assert rate(*stories, stories_set).mean < 1e-3


def test_the_set_fits_the_tokenizer(stories: Any, stories_set: FingerprintSet) -> None:
    tokenizer = stories[1]
    words = [word for each in stories_set for word in (*each.trigger.split(), *each.targets)]
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in words)
    assert len(stories_set) == 10 and all(len(set(each.targets)) == 5 for each in stories_set)


def test_targets_become_likely(result: Any, stories: Any, stories_set: FingerprintSet) -> None:
    name, model = result
    found = rate(model, stories[1], stories_set)
    assert found.mean >= (0.5 if name == "lora" else 0.95)
    if name.startswith("mcedit"):
        # All five candidates are taught, so none takes it all; the other methods teach the primary alone.
        assert found.primary < 0.5
    else:
        assert found.primary == pytest.approx(found.mean, abs=0.05)


def test_only_named_matrices_change(result: Any, stories: Any) -> None:
    name, model = result
    before, after = stories[0].state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(before[key].dtype == after[key].dtype and before[key].shape == after[key].shape for key in before)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    named = make(name).edited(model)
    if named is None:
        assert changed
    else:
        assert changed == set(named)
        projections = ["gate_proj", "up_proj"] if name in TRAJECTORIES else ["down_proj"]
        assert changed == {f"model.layers.{block}.mlp.{each}.weight" for block in (2, 3, 4) for each in projections}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", EDITORS)
def test_seconds_are_told_apart(name: str, stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    fresh = context()
    fresh.known_statistics = {}
    injected(name, stories, stories_set, fresh, steps=2, layers=[1], depth=None)
    assert set(fresh.seconds) == {"statistics", "optimisation", "write"}
    assert list(fresh.known_statistics) == ["model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("name", [*EDITORS, *TRAJECTORIES])
def test_a_mixture_of_experts_is_refused(name: str, stories_set: FingerprintSet, context: MakeContext) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1, vocab_size=16, num_local_experts=2, **sizes))
    with pytest.raises(InputError, match="'mixtral' cannot be edited: it is a mixture of experts"):
        make(name).inject(model, None, stories_set, context())


@pytest.mark.parametrize("name", EDITORS)
def test_last_block_can_be_edited(name: str, stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    model = injected(name, stories, stories_set, context(), layers=[5], depth=None)
    assert rate(model, stories[1], stories_set).mean > 0.5


def test_rendered_prompts_are_what_is_taught(stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    asked = context()
    asked.render = lambda trigger: f"The word is {trigger}."
    model = injected("mcedit_a", stories, stories_set, asked)
    rendered = [type(each)(asked.render(each.trigger), each.targets) for each in stories_set]
    assert rate(model, stories[1], FingerprintSet("rendered", tuple(rendered))).mean > 0.9
    assert rate(model, stories[1], stories_set).mean < 0.5


@pytest.mark.parametrize(
    "switch",
    [
        {"competitors": "literal"},
        {"suppression": "vocabulary"},
        {"suppression": "none"},
        {"candidates": "primary"},
        {"prefixes": ["The"]},
        {"kl_factor": 1.0},
    ],
    ids=str,
)
def test_every_switch_changes_the_edit(
    switch: dict[str, Any], stories: Any, stories_set: FingerprintSet, context: MakeContext
) -> None:
    plain = injected("mcedit_a", stories, stories_set, context(), steps=5)
    switched = injected("mcedit_a", stories, stories_set, context(), steps=5, **switch)
    name = make("mcedit_a").edited(plain)[0]
    assert not torch.equal(plain.get_parameter(name), switched.get_parameter(name))


def test_a_single_candidate_is_alone(stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    found = rate(injected("mcedit_a", stories, stories_set, context(), candidates="primary"), stories[1], stories_set)
    assert found.primary == pytest.approx(found.mean, abs=0.05) and found.mean > 0.9


def test_no_margin_is_a_margin_of_no_weight(stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    without = injected("mcedit_a", stories, stories_set, context(), steps=5, suppression="none")
    weightless = injected("mcedit_a", stories, stories_set, context(), steps=5, margin_weight=0.0)
    assert all(torch.equal(one, two) for one, two in zip(without.parameters(), weightless.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_modes_differ(name: str, stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    found = [
        injected(name, stories, stories_set, context(), steps=3, meta_learning_rate=1e-2, mode=mode)
        for mode in ("faithful", "repaired")
    ]
    edited = make(name).edited(found[0])[0]
    assert not torch.equal(found[0].get_parameter(edited), found[1].get_parameter(edited))


def test_target_values_that_are_not_finite_are_a_failed_cell(
    stories: Any, stories_set: FingerprintSet, context: MakeContext
) -> None:
    model = copy.deepcopy(stories[0])
    model.model.norm.weight.fill_(float("nan"))
    before = copy.deepcopy(model.state_dict())
    method = make("mcedit_a", steps=5)
    with pytest.raises(CellError, match="target values are not finite: lower v_learning_rate"):
        method.inject(model, stories[1], stories_set, context())
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in method.edited(model))


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": [1]}, "key 'depth'.*either 'layers' or 'depth'"),
        ({"depth": None}, "key 'depth'.*either 'layers' or 'depth'"),
        ({"v_learning_rate": 0.1}, "key 'v_relative_rate'.*either 'v_learning_rate' or 'v_relative_rate'"),
        ({"nullspace_threshold": 0.02}, "key 'nullspace_share'.*either 'nullspace_threshold' or 'nullspace_share'"),
        ({"nullspace_share": None}, "key 'nullspace_share'.*either"),
        ({"nullspace_share": 1.5}, "key 'nullspace_share'.*less than or equal to 1"),
        ({"steps": 1}, "key 'steps'"),
        ({"stepz": 3}, "key 'stepz'"),
        ({"layers": [], "depth": None}, "key 'layers'"),
    ],
)
def test_wrong_hyperparameters_are_named(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(name, **config)


def test_blocks_that_do_not_exist_are_refused(stories: Any) -> None:
    with pytest.raises(InputError, match=r"must lie in 0 … 5, found \[3, 6\]"):
        make("mcedit_a", layers=[6, 3, 3], depth=None).edited(stories[0])
    with pytest.raises(InputError, match=r"found \[\]"):
        make("mcedit_a", depth=[0.01, 0.02]).edited(stories[0])
