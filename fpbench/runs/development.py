"""The search for an injection's learning rate, on a set that nobody is scored on (docs/methods.md §2.1, step 5)."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.fsr import fsr
from fpbench.metrics.near import near_triggers
from fpbench.metrics.queries import words_from_rows
from fpbench.models.answers import score_answers
from fpbench.models.deltas import preserved
from fpbench.models.examples import Example
from fpbench.modifications.finetune import ROWS, instruction
from fpbench.runs.injection import inject_with
from fpbench.runs.rates import INJECTION_RATES, InjectionTrial, best
from fpbench.runs.search import BATCH_SIZE, HELD_OUT, SEARCH, SEED, Found, Trials, recorded

if TYPE_CHECKING:
    from fpbench.runs.bench import Bench

METHODS = ("lora",)  # whose learning rate may be searched for
DEVELOPMENT_SEED = 0
CONTEXT_ROWS = 128  # the last rows give trigger contexts


def injection_searches(bench: "Bench", method: str) -> bool:
    """Whether a profile leaves a method's learning rate to a search."""
    name, given = bench.profile.method_of(method)
    return name in METHODS and given.get("learning_rate") == SEARCH


def rate_identity(bench: "Bench", method: str, fingerprints: FingerprintSet) -> dict[str, Any]:
    """What decides the rate besides protocol, base and dtype."""
    adapter = bench.method(method, learning_rate=INJECTION_RATES[0])
    return {
        "method": adapter.name,
        "version": adapter.version,
        "hyperparameters": adapter.config.model_dump(mode="json") | {"learning_rate": SEARCH},
        "fingerprints": fingerprints.digest,
        "prompt": bench.profile.prompt,
        "decoding": bench.decoding,
        "rows": _training_rows(bench),
        "data": bench.materials.digests("alpaca", "zsre"),
    }


def injection_rate(bench: "Bench", method: str, fingerprints: FingerprintSet) -> Found:
    """The rate of the grid with the greatest FSR less what token accuracy it costs.

    Raises:
        InputError: if there are too few rows for a development set and held-out rows.
        CellError: if every injection failed.
    """

    def make() -> tuple[float | None, Trials]:
        count = _training_rows(bench)
        usable = bench.materials.alpaca[:-CONTEXT_ROWS]
        held_out = [instruction(row) for row in usable[count : count + HELD_OUT]]
        if len(held_out) < HELD_OUT:
            raise InputError(
                f"the search for the learning rate of {method!r} needs {count + HELD_OUT + CONTEXT_ROWS} rows of the "
                f"data set 'alpaca', found {len(bench.materials.alpaca)}: give more rows, or a rate."
            )
        words = words_from_rows(usable[:count], DEVELOPMENT_SEED)
        trials = injection_trials(bench, method, development_set(fingerprints, words), held_out)
        return best(trials), trials

    label = f"{method}-{fingerprints.name}"
    return recorded(bench, label, rate_identity(bench, method, fingerprints), make)


def injection_trials(
    bench: "Bench", method: str, development: FingerprintSet, held_out: Sequence[Example]
) -> list[InjectionTrial]:
    """Inject the development set at every rate of the grid; the resident model is left as it was found."""
    model, tokenizer = bench.model, bench.tokenizer
    before = score_answers(model, tokenizer, held_out, BATCH_SIZE).accuracy

    def attempt(rate: float) -> InjectionTrial:
        adapter = bench.method(method, learning_rate=rate)
        with preserved(model):
            try:
                inject_with(adapter, model, tokenizer, development, bench.injection_context(SEED))
                measured = fsr(model, tokenizer, development, prompt=bench.profile.prompt, **bench.decoding)
            except CellError as error:
                return InjectionTrial(rate, verdict=str(error))
            after = score_answers(model, tokenizer, held_out, BATCH_SIZE).accuracy
        return InjectionTrial(rate, measured.mean, before - after)

    return [attempt(rate) for rate in bench.progress(INJECTION_RATES, "searching a learning rate")]


def development_set(fingerprints: FingerprintSet, words: Sequence[str]) -> FingerprintSet:
    """A set of the same size and make that shares no word with the given one.

    Triggers are made as near triggers are. Every target becomes a fresh word, capitalised where it was; targets that
    several fingerprints share stay shared.

    Args:
        fingerprints: the set to be like.
        words: ordinary words.

    Raises:
        InputError: if there are too few words.
    """
    texts = (text for each in fingerprints for text in (each.trigger, *each.targets))
    taken = {word.lower() for text in texts for word in text.split()}
    free = [word for word in words if word.lower() not in taken]
    triggers = near_triggers(fingerprints, free, len(fingerprints), DEVELOPMENT_SEED)
    used = {word.lower() for trigger in triggers for word in trigger.split()}
    left = sorted({word.lower() for word in free} - used)
    if len(left) < len(fingerprints.targets):
        raise InputError(
            f"a development set needs {len(fingerprints.targets)} words for its targets, found {len(left)}: "
            "give more rows of the data set 'alpaca'."
        )
    drawn = random.Random(DEVELOPMENT_SEED).sample(left, len(fingerprints.targets))
    fresh = {
        target: word.capitalize() if target[:1].isupper() else word
        for target, word in zip(fingerprints.targets, drawn, strict=True)
    }
    pairs = zip(triggers, fingerprints, strict=True)
    return FingerprintSet(
        "development",
        tuple(Fingerprint(trigger, tuple(fresh[target] for target in each.targets)) for trigger, each in pairs),
    )


def _training_rows(bench: "Bench") -> int:
    """How many rows fine-tuning trains on; those after them are free for a search."""
    return int(bench.profile.modifications.get("finetune_alpaca", {}).get("rows", ROWS))
