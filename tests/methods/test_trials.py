"""SmolLM2's hyper-parameters are what the declared search finds by its criterion, and no method had more trials."""

import csv
import json
import re
import tomllib
from collections import Counter
from functools import cache
from importlib.resources import files
from statistics import fmean

import pytest

from fpbench.fingerprints import find_set, load_fingerprints
from fpbench.methods.hyperparameters import defaults, overlay
from fpbench.registry import METHODS
from tests.conftest import ROOT

TRIALS = files("fpbench.methods") / "trials"
DECLARED = tomllib.loads((TRIALS / "smollm2.toml").read_text(encoding="utf-8"))
SETS = DECLARED["fingerprints"]
FAMILY = "smollm2-135m"
LEAST_FSR, MOST_PERPLEXITY, MOST_NEAR = 0.99, 0.02, 0.02
MEASURED = ("fsr", "near", "perplexity_difference")


@cache
def figures() -> dict[tuple[str, str, str, str], float]:
    """Return every figure by trial, set, condition and metric."""
    lines = csv.DictReader((TRIALS / "smollm2.csv").read_text(encoding="utf-8").splitlines())
    return {(each["method"], each["set"], each["condition"], each["metric"]): float(each["value"]) for each in lines}


def mean(trial: str, metric: str, condition: str = "origin") -> float | None:
    found = [figures().get((trial, name, condition, metric)) for name in SETS]
    return None if None in found else fmean(each for each in found if each is not None)


def of(method: str) -> list[str]:
    return [name for name, each in DECLARED["variants"].items() if each["method"] == method]


def open_after_the_first_set(trial: str) -> bool:
    """Tell whether the second set can still bring the means within the criterion."""
    fsr, near, perplexity = (figures()[trial, SETS[0], "origin", each] for each in MEASURED)
    return fsr >= 2 * LEAST_FSR - 1 and near <= 2 * MOST_NEAR and perplexity <= 2 * MOST_PERPLEXITY


def eligible(method: str) -> list[str]:
    found = []
    for trial in filter(open_after_the_first_set, of(method)):
        fsr, near, perplexity = (mean(trial, each) for each in MEASURED)
        assert fsr is not None and near is not None and perplexity is not None, f"{trial}: no second set"
        if fsr >= LEAST_FSR and near <= MOST_NEAR and perplexity <= MOST_PERPLEXITY:
            found.append(trial)
    return found


def chosen(method: str) -> str | None:
    """Return the trial that the criterion names; ``None`` if none is harmless enough."""
    kept = {trial: (mean(trial, "fsr", "nf4"), mean(trial, "fsr", "ria30")) for trial in eligible(method)}
    whole = {
        trial: fmean((nf4, ria30)) for trial, (nf4, ria30) in kept.items() if nf4 is not None and ria30 is not None
    }
    best = max(whole, key=lambda trial: whole[trial], default=None)
    for trial, (nf4, _) in kept.items():
        # What was not measured under ria30 could not have won with all of it left.
        assert trial in whole or (best is not None and nf4 is not None and fmean((nf4, 1.0)) < whole[best]), trial
    return best


def mildest(method: str) -> str:
    """Return what is taken where no trial is harmless enough: of those that learn, the one of least perplexity."""
    learnt = [trial for trial in of(method) if figures()[trial, SETS[0], "origin", "fsr"] >= LEAST_FSR]
    return min(learnt, key=lambda trial: figures()[trial, SETS[0], "origin", "perplexity_difference"])


def test_every_method_has_twelve_trials_and_those_that_share_keys_the_same() -> None:
    assert Counter(each["method"] for each in DECLARED["variants"].values()) == dict.fromkeys(METHODS.own, 12)
    for one, other in (("alphaedit", "fpedit"), ("alphaedit", "mcedit_a"), ("rledit", "mcedit_r")):
        pairs = zip(of(one)[1:], of(other)[1:], strict=True)
        assert all(DECLARED["variants"][a]["config"] == DECLARED["variants"][b]["config"] for a, b in pairs)
    for method in METHODS.own:  # the first has what small models have
        small = defaults(method, "small")
        assert overlay(small, DECLARED["variants"][of(method)[0]]["config"]) == small


def test_the_sets_are_drawn_by_seeds_that_no_board_uses() -> None:
    seeds = [json.loads((TRIALS / f"{name}.recipe.json").read_text(encoding="utf-8"))["seed"] for name in SETS]
    assert len({*seeds, 42, 43, 44}) == 5 and not {42, 43, 44} & set(DECLARED["seeds"])
    sets = [load_fingerprints(DECLARED["sets"][name].format(folder=TRIALS)) for name in SETS]
    triggers = [each.trigger for found in (find_set("nlf"), *sets) for each in found]
    assert len(set(triggers)) == len(triggers) == 30


@pytest.mark.parametrize("method", METHODS.own)
def test_the_values_of_smollm2_are_those_of_the_chosen_trial(method: str) -> None:
    best = chosen(method) or mildest(method)
    assert defaults(method, FAMILY) == overlay(defaults(method, "small"), DECLARED["variants"][best]["config"])


@pytest.mark.parametrize("method", sorted({*METHODS.own} - {"lora"}))
def test_the_board_s_page_quotes_the_chosen_trial(method: str) -> None:
    best, page = chosen(method), (ROOT / "leaderboard" / "README.md").read_text(encoding="utf-8")
    asked = [
        ("origin", "fsr"),
        ("origin", "near"),
        ("origin", "perplexity_difference"),
        ("nf4", "fsr"),
        ("ria30", "fsr"),
    ]
    fsr, near, perplexity, nf4, ria30 = (
        f"{100 * (mean(str(best), metric, place) or 0):.1f}" for place, metric in asked
    )
    figures_of = f"| {len(eligible(method))} | {fsr} | {near} | +{perplexity} % | {nf4} | {ria30} |"
    assert re.search(rf"^\| `{method}` \| `{best}`, [^|]+{re.escape(figures_of)}$", page, flags=re.M)


def test_the_board_s_page_says_that_no_trial_of_lora_is_harmless() -> None:
    page = (ROOT / "leaderboard" / "README.md").read_text(encoding="utf-8")
    trial = mildest("lora")
    near, perplexity = (
        f"{100 * figures()[trial, SETS[0], 'origin', metric]:.1f}" for metric in ("near", "perplexity_difference")
    )
    assert chosen("lora") is None
    assert f"| `lora` | `{trial}` | 0 | 100.0 | {near} | +{perplexity} % | – | – |" in page
