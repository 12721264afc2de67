"""Which hyper-parameters a method gets."""

from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from fpbench.errors import InputError
from fpbench.methods.base import FingerprintMethod, MethodConfig
from fpbench.methods.hyperparameters import defaults, family_of, hyperparameters, overlay
from fpbench.registry import METHODS
from fpbench.runs.profile import load_profile

PAPER = {
    "llama-3.2-3b": LlamaConfig(hidden_size=3072, num_hidden_layers=28, num_attention_heads=24),
    "mistral-7b": MistralConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32),
    "qwen3-8b": Qwen3Config(hidden_size=4096, num_hidden_layers=36, num_attention_heads=32),
}


def on_meta(config: Any) -> Any:
    """A model of any size without any weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


SMOLLM2 = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, intermediate_size=1536)


@pytest.mark.parametrize("family", [*PAPER, "small"])
@pytest.mark.parametrize("method", METHODS.own)
def test_every_built_in_method_has_complete_defaults(method: str, family: str) -> None:
    METHODS.get(method)(**defaults(method, family))


@pytest.mark.parametrize("family", PAPER)
def test_paper_models_are_recognised_by_their_shape(family: str) -> None:
    assert family_of(on_meta(PAPER[family])) == family


def test_smollm2_is_recognised_by_its_shape() -> None:
    assert family_of(on_meta(SMOLLM2)) == "smollm2-135m"


def test_paper_layers() -> None:
    assert defaults("alphaedit", "llama-3.2-3b")["layers"] == [13, 14, 15, 16, 17]
    assert defaults("mcedit_a", "mistral-7b")["layers"] == [10, 11, 12, 13, 14]
    assert defaults("mcedit_a", "qwen3-8b")["layers"] == [11, 12, 13, 14, 15]


def test_small_and_unknown_models(stories: Any) -> None:
    assert family_of(stories[0]) == "small"
    large = on_meta(LlamaConfig(hidden_size=4096, num_hidden_layers=20, num_attention_heads=32))
    with pytest.raises(InputError, match="no hyper-parameters are known for model type 'llama'"):
        hyperparameters("mcedit_a", large, {})
    assert hyperparameters("mcedit_a", large, {"layers": [3]}) == {"layers": [3]}


def test_a_method_from_elsewhere_declares_its_own(stories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Strangers:
        hyperparameters: ClassVar[dict[str, Any]] = {}
        Config = MethodConfig

    monkeypatch.setitem(METHODS._classes, "strangers", Strangers)
    large = on_meta(LlamaConfig(hidden_size=4096, num_hidden_layers=20, num_attention_heads=32))
    assert hyperparameters("strangers", large, {}) == {}
    Strangers.hyperparameters = {"all": {"steps": 3, "rate": 0.1}, "small": {"rate": 0.2}}
    assert hyperparameters("strangers", stories[0], {"steps": 4}) == {"steps": 4, "rate": 0.2}
    # A small model of a family that the method has no values for.
    assert hyperparameters("strangers", on_meta(SMOLLM2), {}) == {"steps": 3, "rate": 0.2}
    with pytest.raises(InputError, match="no hyper-parameters are known for model type 'llama'"):
        hyperparameters("strangers", large, {})


def test_what_a_user_says_replaces_its_alternative(stories: Any) -> None:
    given = hyperparameters("mcedit_a", stories[0], {"layers": [2], "nullspace_threshold": 0.1, "steps": 9})
    assert "depth" not in given and "nullspace_share" not in given
    assert (given["layers"], given["nullspace_threshold"], given["steps"]) == ([2], 0.1, 9)
    METHODS.get("mcedit_a")(**given)
    alternatives = METHODS.get("mcedit_a").Config.alternatives
    assert overlay({"a": 1, "layers": [1]}, {"depth": [0, 1]}, alternatives) == {"a": 1, "depth": [0, 1]}


def test_keys_are_alternatives_only_where_a_config_says_so(stories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlay({"depth": 10, "rank": 4}, {"layers": [1, 2]}) == {"depth": 10, "rank": 4, "layers": [1, 2]}

    class Strangers(FingerprintMethod):
        """Of no alternatives, though its keys are called like those of the package's own methods."""

        version = "1"
        hyperparameters: ClassVar[dict[str, Any]] = {"all": {"depth": 10, "rank": 4}, "small": {"layers": [1]}}

        class Config(MethodConfig):
            """Three keys that go together."""

            depth: int
            rank: int
            layers: list[int]

        def inject(self, *_: Any) -> None:
            """Nothing."""

    monkeypatch.setitem(METHODS._classes, "strangers", Strangers)
    assert hyperparameters("strangers", stories[0], {}) == {"depth": 10, "rank": 4, "layers": [1]}
    assert hyperparameters("strangers", stories[0], {"layers": [2]}) == {"depth": 10, "rank": 4, "layers": [2]}
    assert hyperparameters("rledit", stories[0], {"depth": 3})["depth"] == 3
    profile = load_profile(
        "micro",
        hyperparameters={"strangers": {"depth": 9}, "alphaedit": {"depth": [0.1, 0.9]}},
        variants={
            "mine": {"method": "strangers", "config": {"layers": [3]}},
            "late": {"method": "alphaedit", "config": {"layers": [3]}},
        },
    )
    assert profile.method_of("mine") == ("strangers", {"depth": 9, "layers": [3]})
    assert profile.method_of("late") == ("alphaedit", {"layers": [3]})


@pytest.mark.parametrize(("count", "blocks"), [(5, [2, 3]), (6, [2, 3, 4]), (8, [3, 4, 5])])
def test_small_depth(count: int, blocks: list[int]) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=count, num_attention_heads=1)
    assert METHODS.get("mcedit_a")(**defaults("mcedit_a", "small")).blocks(on_meta(config)) == blocks
