"""What every adversary must hold to, check by check, as it is looked for on the bundled model.

>>> from fpbench.contract.adversary import check
>>> [finding for finding in check("my_thief") if not finding.passed]
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.adversaries.base import LEVELS, Adversary, AdversaryContext, Attack
from fpbench.checks import Checklist, Finding
from fpbench.contract.trials import (
    SEED,
    bundled,
    config_state,
    differences,
    last_logits,
    process_state,
    structure_state,
    tokenizer_state,
    undisturbed,
)
from fpbench.errors import FpbenchError, InputError
from fpbench.fingerprints import find_set
from fpbench.metrics.fsr import exact_fsr
from fpbench.models.prompts import encode, render
from fpbench.models.weights import weights
from fpbench.modifications.base import Dose, Modification
from fpbench.registry import ADVERSARIES

MOST = 0.01  # FSR of the unfingerprinted base, under whatever a thief does
LIKE = 1e-3  # how near logits must be to count as the same; where models are read in other batches, rounding differs
PAYS = ("inference", "data", "parameters")
TEXTS, INSTRUCTIONS, SIBLINGS = 2, 40, 2  # triggers, and as many instructions, that it is asked about
Node = tuple[list[int], tuple[int, ...]]  # prompt and prefix, as token ids
CHECKS: Checklist["Trials"] = Checklist()


def check(adversary: str) -> list[Finding]:
    """Run every check on a registered adversary and the bundled model; return a finding each, in their order.

    Raises:
        InputError: if no adversary has that name.
    """
    return CHECKS.examine(Trials(ADVERSARIES.get(adversary)))


@dataclass(frozen=True)
class Trial:
    """One adversary at one dose, prepared, and asked about the same texts and nodes as every other."""

    error: Exception | None  # raised by it
    inputs: list[Any]  # what it made of every text
    together: Tensor | None  # its logits of all nodes, [n, V]; None without a sampler
    apart: Tensor | None  # the same, each node asked for alone and in turn from the last, [n, V]
    damage: list[str]  # what of models, tokenizer and process it changed

    @property
    def problem(self) -> str | None:
        """What was raised, in one line."""
        return None if self.error is None else _one_line(self.error)


def _one_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, FpbenchError) else f"{type(error).__name__}: {text}"


class Trials:
    """Trials of one adversary on the bundled model, each made when it is first asked for."""

    def __init__(self, adversary: type[Adversary]) -> None:
        """Try nothing yet."""
        self.adversary = adversary
        materials, base, self.tokenizer = bundled()
        self.base = copy.deepcopy(base)  # what an adversary does to it is found, and harms nobody else
        self.instructions = [row["instruction"] for row in materials.alpaca[:INSTRUCTIONS]]
        self.decoding = materials.profile.models[0].decoding
        self.fingerprints = list(find_set("nlf"))[:TEXTS]
        self.texts, self.nodes, self.logits = _asked()

    @cached_property
    def plain(self) -> Trial:
        """At its default dose."""
        return self._attempt(None, noise=1)

    @cached_property
    def repeated(self) -> Trial:
        """The same again, with other global random numbers."""
        return self._attempt(None, noise=2)

    @cached_property
    def nothing(self) -> Trial:
        """At a dose of 0."""
        return self._attempt(0.0, noise=1)

    def context(self, model: nn.Module, tokenizer: Any) -> AdversaryContext:
        """Return what the adversary may know: the model, its base, and two siblings that differ a little from it."""
        return AdversaryContext(
            model,
            tokenizer,
            self.decoding,
            lambda text: render(tokenizer, text, "raw"),
            SEED,
            self.instructions,
            lambda: self.base,
            lambda: self._siblings,
            leaked=self.fingerprints,
        )

    @cached_property
    def _siblings(self) -> list[nn.Module]:
        generator = torch.Generator().manual_seed(SEED)
        siblings = [copy.deepcopy(self.base) for _ in range(SIBLINGS)]
        with torch.no_grad():
            for sibling in siblings:
                for weight in sibling.parameters():
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.add_(0.01 * weight.std() * noise)
        return siblings

    def _attempt(self, amount: float | None, noise: int) -> Trial:
        """Prepare it on a copy of the model and ask it everything; ``noise`` seeds the global random states."""
        model, tokenizer = copy.deepcopy(self.base), copy.deepcopy(self.tokenizer)
        before = _states(model, tokenizer) | _states(self.base, self.tokenizer, "of the base, ")
        error: Exception | None = None
        inputs: list[Any] = []
        together = apart = None
        with undisturbed(noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not a finding
            shared = process_state()
            try:
                thief = self.adversary(amount)
                sampler = Attack.on([thief], self.context(model, tokenizer)).sampler
                inputs = [thief.input(text) for text in self.texts]
                if sampler is not None:
                    prompts, prefixes = zip(*self.nodes, strict=True)
                    together = sampler(prompts, prefixes, self.logits)
                    alone = [
                        sampler([prompt], [prefix], row[None])[0]
                        for (prompt, prefix), row in zip(reversed(self.nodes), self.logits.flip(0), strict=True)
                    ]
                    apart = torch.stack(alone[::-1])
            except Exception as raised:  # somebody else's adversary may raise anything
                error = raised
            damage = differences(shared, process_state())
        after = _states(model, tokenizer) | _states(self.base, self.tokenizer, "of the base, ")
        damage += differences(before, after)
        return Trial(error, inputs, together, apart, damage)

    def rate(self, amount: float | None) -> float:
        """Return the base's FSR under the adversary at a dose, or at the one strength that it has."""
        attack = Attack.on([self.adversary(amount)], self.context(self.base, self.tokenizer))
        return exact_fsr(self.base, self.tokenizer, self.fingerprints, self.decoding, attack=attack).mean


@cache
def _asked() -> tuple[list[str], list[Node], Tensor]:
    """Return texts, nodes of the responses to them, and the bundled model's own logits of these, [n, V]."""
    materials, base, tokenizer = bundled()
    instructions = dict.fromkeys(row["instruction"] for row in materials.alpaca)
    texts = [*(each.trigger for each in list(find_set("nlf"))[:TEXTS]), *list(instructions)[:TEXTS]]
    prompts = [encode(tokenizer, text) for text in texts]
    likely = [int(row.argmax()) for row in last_logits(base, prompts)]
    nodes: list[Node] = []
    for prompt, token in zip(prompts, likely, strict=True):
        nodes += [(prompt, ()), (prompt, (token,)), (prompt, (token, likely[0]))]
    return texts, nodes, last_logits(base, [[*prompt, *prefix] for prompt, prefix in nodes])


def _states(model: nn.Module, tokenizer: Any, whose: str = "") -> dict[str, Any]:
    values = weights(model) | structure_state(model) | config_state(model) | tokenizer_state(tokenizer)
    return {f"{whose}{name}": value for name, value in values.items()}


@CHECKS.add(
    "declaration",
    "a version, a known level, what is paid in numbers, and at least one part",
    'set version = "1", level = "L0" to "L4" and pays, and overwrite input, sampler or weights',
)
def _declaration(trials: Trials) -> str | None:
    found = trials.adversary
    if not isinstance(found.version, str):
        return "no version"
    if found.level not in LEVELS:
        return f"level {found.level!r}"
    for name, multiple in found.pays.items():
        if name not in PAYS or not isinstance(multiple, int | float) or multiple < 0:
            return f"pays {name!r}: {multiple!r}"
    parts = found.changes_queries(), found.changes_sampling(), found.weights is not Adversary.weights
    return None if any(parts) else "no part"


@CHECKS.add(
    "dose",
    "no dose, or a scale whose doses are in range, each stronger than the one before",
    "mend the class's Dose, and hand the amount to Adversary.__init__, which refuses what is out of range",
    needs=["declaration"],
)
def _dose(trials: Trials) -> str | None:
    dose = trials.adversary.dose
    if dose is None:
        return None
    if not isinstance(dose, Dose):
        return f"a {type(dose).__name__}"
    if dose.default is None:
        return "no default dose"
    ascending = dose.list[::-1] if dose.weaker_is_larger else dose.list
    if any(one >= other for one, other in pairwise(ascending)):
        return f"the doses {', '.join(f'{each:g}' for each in dose.list)}, in this order"
    for amount in (*dose.list, dose.default):
        if not dose.least <= amount <= dose.most:
            return f"{amount:g}, which is out of range"
        try:
            trials.adversary(amount)
        except Exception as error:  # somebody else's adversary may raise anything
            return f"at {amount:g} {_one_line(error)}"
    try:
        trials.adversary(dose.least - 1)
    except InputError:
        return None
    return f"{dose.least - 1:g} accepted, which is below {dose.least:g}"


@CHECKS.add("prepares", "an adversary that can be prepared and asked", "mend the error", needs=["dose"])
def _prepares(trials: Trials) -> str | None:
    return trials.plain.problem


@CHECKS.add(
    "input",
    "for every query a text, several texts, or None",
    "return a str, a list of them that is not empty, or None to refuse",
    needs=["prepares"],
)
def _input(trials: Trials) -> str | None:
    for found in trials.plain.inputs:
        several = [found] if isinstance(found, str) else found
        if found is not None and not (
            _sequence(several) and several and all(isinstance(each, str) for each in several)
        ):
            return f"a {type(found).__name__}" if several else "an empty list"
    return None


def _sequence(found: Any) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, bytes)


@CHECKS.add(
    "pure",
    "logits that depend on the prompt, the prefix and the model's logits alone",
    "keep no state between calls of the sampler, and treat every row of a batch by itself",
    needs=["prepares"],
)
def _pure(trials: Trials) -> str | None:
    return _apart(trials.plain.together, trials.plain.apart, "of a node asked for alone")


def _apart(one: Tensor | None, other: Tensor | None, what: str) -> str | None:
    """Return how far two sets of logits are apart, in words; ``None`` where they are alike or there are none."""
    if one is None or other is None or torch.allclose(one, other, rtol=LIKE, atol=LIKE):  # −∞ equals itself
        return None
    return f"other logits {what}, in {int((one - other).abs().nan_to_num(0).gt(LIKE).any(-1).sum())} nodes"


@CHECKS.add(
    "deterministic",
    "the same inputs and logits from the same seed",
    "draw everything random in prepare, from a generator seeded with context.seed, or from a digest of the text",
    needs=["prepares"],
)
def _deterministic(trials: Trials) -> str | None:
    if trials.repeated.inputs != trials.plain.inputs:
        return "other inputs at the second time"
    return _apart(trials.plain.together, trials.repeated.together, "at the second time")


@CHECKS.add(
    "nothing",
    "queries and logits as they were at a dose of 0, bit for bit",
    "return what was given, or let the dose begin above 0 (Dose.least)",
    needs=["prepares"],
)
def _nothing(trials: Trials) -> str | None:
    dose = trials.adversary.dose
    if dose is None or not dose.least <= 0 <= dose.most:
        return None
    trial = trials.nothing
    if trial.error is not None:
        return trial.problem
    changed = sum(text != found for text, found in zip(trials.texts, trial.inputs, strict=True))
    if changed:
        return f"{changed} of {len(trials.texts)} queries changed"
    alike = trial.together is None or torch.equal(trial.together, trials.logits)
    return None if alike else "other logits"


@CHECKS.add(
    "unharmed",
    "models, tokenizer and process as they were",
    "work on copies of weights, remove hooks, use generators of your own",
    needs=["prepares"],
)
def _unharmed(trials: Trials) -> str | None:
    damage = trials.plain.damage
    rest = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
    return f"{', '.join(damage[:3])}{rest} changed" if damage else None


@CHECKS.add(
    "weights",
    "None or a Modification as its weights part",
    "return an instance of a class derived from fpbench.modifications.base.Modification",
    needs=["dose"],
)
def _weights(trials: Trials) -> str | None:
    found = trials.adversary(None).weights()
    return None if found is None or isinstance(found, Modification) else f"a {type(found).__name__}"


@CHECKS.add(
    "base",
    f"an exact FSR of the unfingerprinted base of at most {MOST}, at every dose",
    "put nothing into the model's mouth: a thief removes answers and adds none",
    needs=["pure", "input", "deterministic"],
)
def _base(trials: Trials) -> str | None:
    dose = trials.adversary.dose
    for amount in dict.fromkeys([*dose.list, dose.default] if dose else [None]):
        try:
            rate = trials.rate(amount)
        except Exception as error:  # somebody else's adversary may raise anything
            return _one_line(error)
        if rate > MOST:
            return f"{rate:.3f}" + (f" at {amount:g}" if amount is not None else "")
    return None
