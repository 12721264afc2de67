"""Every adversary of the package and the template keep the contract, and what breaks it is told."""

import importlib.util
import random

import pytest
import torch

from fpbench.adversaries.base import Adversary
from fpbench.contract.adversary import CHECKS, Trials, check
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES
from tests.conftest import ROOT, registered_for_now
from tests.contract.template import shortened, told

TEMPLATE = ROOT / "submissions" / "_template_adversary" / "adversary.py"


@pytest.fixture(autouse=True)
def forgotten():
    with registered_for_now():
        yield


HUNTS = [name for name in ADVERSARIES.own if name.startswith("hunt")]


@pytest.mark.parametrize(
    "name", [name if name not in HUNTS else pytest.param(name, marks=pytest.mark.slow) for name in ADVERSARIES.own]
)
def test_every_adversary_keeps_the_contract(name):
    findings = check(name)
    assert [finding.name for finding in findings] == [each.name for each in CHECKS]
    assert all(finding.passed for finding in findings), told(findings)


@pytest.mark.parametrize("name", ["hunt_leaked"])
def test_a_short_hunt_keeps_the_contract(name):
    """Cut: one hunt, with six candidates and twelve in place of a thousand and ten thousand."""
    few = {"dose": Dose("candidate texts", 6, (6, 12)), "reference": 6}
    ADVERSARIES.register(f"short_{name}")(type("Short", (ADVERSARIES.get(name),), few))
    findings = check(f"short_{name}")
    assert all(finding.passed for finding in findings), told(findings)


def test_the_template_keeps_the_contract():
    specification = importlib.util.spec_from_file_location("template_adversary", TEMPLATE)
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
    findings = check("level_first")
    assert all(finding.passed for finding in findings), told(findings)


def test_an_unknown_adversary_is_refused():
    with pytest.raises(InputError, match="unknown adversary 'rwap'.*did you mean 'wrap'"):
        check("rwap")


class NoVersion(Adversary):
    version = None

    def input(self, text):
        return text


class NoLevel(Adversary):
    level = "L9"

    def input(self, text):
        return text


class PaysMoney(Adversary):
    pays = {"money": 1}

    def input(self, text):
        return text


class NoPart(Adversary):
    pass


class Descending(Adversary):
    dose = Dose("steps", 1, (3, 1))

    def input(self, text):
        return text


class TakesAnything(Adversary):
    dose = Dose("steps", 1, (1, 3))

    def __init__(self, amount=None):
        self.amount = amount

    def input(self, text):
        return text


class Raises(Adversary):
    def sampler(self, prompt, prefix, logits):
        raise ValueError("no such\nthing")


class Cut(Adversary):
    def sampler(self, prompt, prefix, logits):
        return logits[1:]


class EmptyList(Adversary):
    def input(self, text):
        return []


class OfBytes(Adversary):
    def input(self, text):
        return text.encode()


class Counts(Adversary):
    calls = 0

    def sampler(self, prompt, prefix, logits):
        self.calls += 1
        return logits + torch.arange(len(logits)) * self.calls


class LooksAtNeighbours(Adversary):
    def sample(self, prompts, prefixes, logits):
        return logits - logits.mean(0)


class Unseeded(Adversary):
    def input(self, text):
        return f"{text} {random.SystemRandom().random()}"


class UnseededSampler(Adversary):
    def prepare(self, context):
        generator = torch.Generator().manual_seed(random.SystemRandom().randrange(2**31))
        self.noise = torch.randn(len(context.tokenizer), generator=generator)

    def sampler(self, prompt, prefix, logits):
        return logits + self.noise


class OfGlobalNumbers(Adversary):
    def input(self, text):
        return f"{text} {random.random()}"


class NeverNothing(Adversary):
    dose = Dose("steps", 1, (1, 3))

    def input(self, text):
        return text.lower()


class NeverNothingOfLogits(Adversary):
    dose = Dose("steps", 1, (1, 3))

    def sampler(self, prompt, prefix, logits):
        return logits * 2


class Vandal(Adversary):
    def prepare(self, context):
        next(context.model.parameters()).add_(1)

    def input(self, text):
        return text


class VandalOfTheBase(Adversary):
    needs = ("base",)

    def prepare(self, context):
        next(context.base().parameters()).add_(1)

    def input(self, text):
        return text


class Loud(Adversary):
    def prepare(self, context):
        random.seed(7)

    def input(self, text):
        return text


class NoModification(Adversary):
    def weights(self):
        return "nf4"


class Ventriloquist(Adversary):
    """Makes any model answer the first fingerprint."""

    def prepare(self, context):
        self.answer = context.tokenizer(f" {next(iter(find_set('nlf'))).primary}", add_special_tokens=False)[
            "input_ids"
        ]

    def sampler(self, prompt, prefix, logits):
        said = torch.full_like(logits, -50)
        said[self.answer[min(len(prefix), len(self.answer) - 1)]] = 50
        return said


@pytest.mark.parametrize(
    ("broken", "name", "found"),
    [
        (NoVersion, "declaration", "no version"),
        (NoLevel, "declaration", "level 'L9'"),
        (PaysMoney, "declaration", "pays 'money': 1"),
        (NoPart, "declaration", "no part"),
        (Descending, "dose", "the doses 3, 1, in this order"),
        (TakesAnything, "dose", "-1 accepted, which is below 0"),
        (Raises, "prepares", "ValueError: no such"),
        (Cut, "prepares", "'cut' returned logits of shape"),
        (EmptyList, "input", "an empty list"),
        (OfBytes, "input", "a bytes"),
        (Counts, "pure", "other logits of a node asked for alone"),
        (LooksAtNeighbours, "pure", "other logits of a node asked for alone"),
        (Unseeded, "deterministic", "other inputs at the second time"),
        (UnseededSampler, "deterministic", "other logits at the second time"),
        (OfGlobalNumbers, "deterministic", "other inputs at the second time"),
        (NeverNothing, "nothing", "4 of 4 queries changed"),
        (NeverNothingOfLogits, "nothing", "other logits"),
        (Vandal, "unharmed", "model.embed_tokens.weight changed"),
        (VandalOfTheBase, "unharmed", "of the base, model.embed_tokens.weight changed"),
        (Loud, "unharmed", "Python's random state changed"),
        (NoModification, "weights", "a str"),
        (Ventriloquist, "base", "0."),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_what_breaks_the_contract_is_told(broken, name, found):
    ADVERSARIES.register(broken.__name__.lower())(broken)
    *others, finding = shortened(CHECKS, name).examine(Trials(broken))
    assert all(each.passed for each in others), told(others)
    assert finding.passed is False and finding.name == name and found in finding.found, str(finding)
    assert "\n" not in str(finding)


def test_every_check_is_broken_by_somebody():
    (cases,) = (mark.args[1] for mark in test_what_breaks_the_contract_is_told.pytestmark)
    assert {name for _, name, _ in cases} == {each.name for each in CHECKS}
