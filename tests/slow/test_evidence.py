"""Power and false claims of every rule of evidence, under every run-time adversary, on the micro model.

The summary is written to evidence.md beside this file.
"""

import copy
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

import fpbench
from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries
from fpbench.adversaries.price import compare, measure
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.ownership.evidence import RULES, chance
from fpbench.ownership.sequential import null_rates
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import load_profile
from fpbench.scoring.responses import Decoding
from tests.adversaries.taught import taught
from tests.ownership.studied import RUNS, claimed, match_rates

SUMMARY = Path(__file__).with_name("evidence.md")
METHODS = ("fpedit", "mcedit_a")
CONDITIONS = (
    "origin", "decode@0.2", "decode@1.5", "wrap@8", "vote@3", "canonical@4", "filter@5", "suppress@1", "suppress@3",
    "suppress@5", "suppress_4@3", "suppress_always@1", "suppress_always@3", "suppress_neighbours@1",
    "suppress_neighbours@3", "suppress_lookahead@12", "replace@20", "ensemble@20",
)  # fmt: skip
COUNT = 24  # sampled responses to a trigger
LEVEL = 1e-3


@pytest.mark.slow
def test_power_and_false_claims_of_every_rule(micro) -> None:
    base, tokenizer = micro
    pairs = find_set("nlf")
    data = Datasets(load_profile("micro"))
    benign = [row["instruction"] for row in data.benign]
    # Of another owner: the same targets after other triggers, which is the hardest that an innocent model can be.
    others = [Fingerprint(text, each.targets) for text, each in zip(benign[-len(pairs) :], pairs, strict=True)]
    models = {method: injected(base, tokenizer, pairs, method) for method in METHODS}
    innocent = {
        "base": base,
        "another owner's": injected(base, tokenizer, FingerprintSet("other", tuple(others)), "mcedit_a"),
    }
    siblings = [taught(base, tokenizer, others[:5]), taught(base, tokenizer, others[5:])]
    asked = [Fingerprint(text, each.targets) for text, each in zip(benign, list(pairs) * 3, strict=False)]

    def attack(condition: str, model) -> Attack:
        known = {"instructions": benign, "base": lambda: base, "siblings": lambda: siblings}
        return Attack.on(adversaries(condition), AdversaryContext(model, tokenizer, Decoding(), **known))

    null = {
        rule: null_rates([chance(rule, base, tokenizer, pairs, Decoding(), "raw", 42, benign)], len(pairs))
        for rule in RULES
    }
    context = AdversaryContext(base, tokenizer, Decoding(), instructions=benign, base=lambda: base)
    prices = priced(base, tokenizer, data.price_items, context, siblings)
    power: dict[tuple[str, str, str], float] = {}
    wrong: dict[tuple[str, str, str], float] = {}
    rates: dict[tuple[str, str, str], float] = {}
    for condition in CONDITIONS:
        print(condition, flush=True)
        for name, model in (models | innocent).items():
            thief = attack(condition, model)
            for rule in RULES:
                found = match_rates(rule, model, tokenizer, pairs, thief, COUNT)
                into = power if name in METHODS else wrong
                into[condition, name, rule] = claimed(found, null[rule], LEVEL)
                rates[condition, name, rule] = fmean(found)
    # Benign prompts in the place of triggers: of every model, the fingerprinted ones too, ten at a time.
    for name, model in (models | innocent).items():
        for rule in RULES:
            found = match_rates(rule, model, tokenizer, asked, attack("origin", model), COUNT)
            sets = [found[start : start + len(pairs)] for start in range(0, len(found) - len(pairs) + 1, len(pairs))]
            wrong["benign prompts", name, rule] = max(claimed(each, null[rule], LEVEL) for each in sets)
            rates["benign prompts", name, rule] = fmean(found)
    SUMMARY.write_text(written(null, prices, power, wrong, rates), encoding="utf-8")
    # The bound holds wherever chance was measured, and the default keeps it there under every thief.
    assert all(power["origin", method, "prefix"] > 0.99 for method in METHODS)
    for (condition, name, rule), rate in wrong.items():
        assert (name, rule) != ("base", "prefix") or rate <= LEVEL, (condition, rate)
        assert (condition, name) != ("origin", "base") or rate <= 2 * LEVEL, (rule, rate)


def injected(base, tokenizer, pairs, method):
    model = copy.deepcopy(base)
    fpbench.inject(model, tokenizer, pairs, method=method, profile="micro")
    return model


def priced(base, tokenizer, items, context, siblings) -> dict[str, float]:
    """The long price of each condition on the base, as the board measures it."""
    context = replace(context, siblings=lambda: siblings)
    conditions = list(CONDITIONS)
    found = measure(base, tokenizer, conditions, replace(items, answers=items.answers[:2], text=""), context)
    return {name: compare(found[0], lines).long for name, lines in zip(conditions, found, strict=True)}


def written(null, prices, power, wrong, rates) -> str:
    """The summary as Markdown."""
    lines = [
        "# Rules of evidence",
        "",
        "Written by `tests/slow/test_evidence.py`; the level is 1e-3, ten fingerprints of `nlf`, micro model;",
        f"prefix exact, `lenient` from {COUNT} sampled responses a trigger, {RUNS:,} simulated tests each.",
    ]
    lines += ["", "| rule | counts as a match | chance rates q̄ of the ten | not asked |", "|---|---|---|---|"]
    for rule, said in RULES.items():
        shown = ", ".join(f"{rate:.3g}" for rate in sorted(null[rule]))
        lines.append(f"| `{rule}` | {said} | {shown} | {sum(rate >= 0.5 for rate in null[rule])} |")
    lines += ["", "## Power", "", "Claims in 100 tests (mean match rate, %).", ""]
    lines += table(prices, power, rates, METHODS)
    lines += [
        "",
        "## False claims",
        "",
        "The same of models without the fingerprints. *another owner's*: the same targets after ten other",
    ]
    lines += [
        "texts, injected by `mcedit_a`; chance was measured on the base alone. The last line has benign prompts in the",
        "place of triggers, the worst of three times ten.",
        "",
    ]
    lines += table(prices, wrong, rates, ("base", "another owner's"))
    lines += [
        "",
        "Of fingerprinted models, benign prompts in the place of triggers, claims in 100 (mean match rate, %):",
    ]
    both = [(name, rule) for name in METHODS for rule in RULES]
    shown = {each: (100 * wrong["benign prompts", *each], 100 * rates["benign prompts", *each]) for each in both}
    lines.append("; ".join(f"{name}, `{rule}`: {a:.2f} ({b:.1f})" for (name, rule), (a, b) in shown.items()) + ".")
    return "\n".join(lines) + "\n"


def table(prices, shown, rates, names) -> list[str]:
    heads = [f"{name}, `{rule}`" for name in names for rule in RULES]
    lines = [f"| adversary | long price, % | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for condition in dict.fromkeys(condition for condition, name, _ in shown if name in names):
        price = f"{100 * prices[condition]:.2f}" if condition in prices else "–"
        cells = [
            f"{100 * shown[condition, name, rule]:.2f} ({100 * rates[condition, name, rule]:.1f})"
            for name in names
            for rule in RULES
        ]
        lines.append(f"| {condition} | {price} | {' | '.join(cells)} |")
    return lines
