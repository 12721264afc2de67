"""The learning rates that the small profiles hold as numbers, found once more."""

import pytest
import torch

from fpbench.models.deltas import weights
from fpbench.models.loading import load_model, resolve
from fpbench.models.progress import no_progress
from fpbench.registry import MODIFICATIONS
from fpbench.runs.materials import Materials
from fpbench.runs.profile import load_profile
from fpbench.runs.rates import largest_stable
from fpbench.runs.search import SEARCH, fine_tuning_trials


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["finetune_alpaca", "finetune_math"])
def test_the_micro_profile_holds_the_rates_that_its_search_finds(condition):
    profile = load_profile("micro")
    settings = profile.modifications[condition]
    model, tokenizer = load_model(resolve("micro"))
    context = Materials(profile).modification_context(42, no_progress, weights(model))
    searching = MODIFICATIONS.get(condition)(**settings | {"learning_rate": SEARCH})
    assert largest_stable(fine_tuning_trials(model, tokenizer, searching, context)) == settings["learning_rate"]
    assert all(torch.equal(value, context.base[name]) for name, value in model.named_parameters())
