"""The learning rates that the small profiles hold as numbers, found once more."""

import pytest
import torch

from fpbench.models.checkpoints import resolve
from fpbench.models.loading import load_model
from fpbench.models.meter import no_progress
from fpbench.models.weights import weights
from fpbench.registry import MODIFICATIONS
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import load_profile
from fpbench.runs.search import SEARCH, fine_tuning_trials, largest_stable


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["finetune_alpaca", "finetune_math"])
def test_the_micro_profile_holds_the_rates_that_its_search_finds(condition):
    profile = load_profile("micro")
    settings = profile.modifications[condition]
    model, tokenizer = load_model(resolve("micro"))
    searching = MODIFICATIONS.get(condition)(**settings | {"learning_rate": SEARCH})
    context = Datasets(profile).modification_context(searching, 42, no_progress, weights(model))
    assert largest_stable(fine_tuning_trials(model, tokenizer, searching, context)) == settings["learning_rate"]
    assert all(torch.equal(value, context.base[name]) for name, value in model.named_parameters())
