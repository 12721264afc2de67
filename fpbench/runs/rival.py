"""A thief's own set over the owner's: drawn, injected by the same method, and measured."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.fingerprints.code_mixed import CODE_MIXED, code_mixed_set, draw_queries
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.natural import draw_natural_set, with_candidates
from fpbench.fingerprints.translation import Lexicon
from fpbench.metrics.fsr import exact_fsr
from fpbench.metrics.queries import words_from_rows
from fpbench.metrics.triggers import near_triggers
from fpbench.records.cell import Cell
from fpbench.runs.injection import InjectionReport, inject_with
from fpbench.runs.sets import LENGTH
from fpbench.runs.subject import Subject

RIVAL, TURNS = 1_000_000, 100  # added to the seed for a thief's set; draws until it has none of the owner's triggers
# Targets of a pair, as in built-in sets; and words that serve as targets of all pairs, fewer than the shipped ones.
CANDIDATES, ANSWERS = 5, 150


def injection_of_rival(
    subject: Subject, cell: Cell, own: FingerprintSet, report: InjectionReport | None
) -> Callable[[Any, int], dict[str, Any]] | None:
    """Return what injects a thief's set by the cell's method, in place, and measures it; ``None`` without a method.

    It returns what a proof holds: the digest of the set, its FSR, and ‖ΔW‖/‖W‖ of what the injection changed.
    """
    if report is None:
        return None
    found = {"learning_rate": report.search["learning_rate"]} if report.search else {}

    def inject(model: Any, count: int) -> dict[str, Any]:
        rival = rival_set(subject, own, count, cell.seed)
        # A method in another process would load the base again, and write over that.
        context = replace(subject.injection_context(RIVAL + cell.seed), base=None)
        made = inject_with(subject.method(cell.method, **found), model, subject.tokenizer, rival, context)
        figures = {"rival": rival.digest, "rival_fsr": fsr_of(subject, model, rival)}
        return figures | {"rival_relative_norm": made.changed["relative_norm"]}

    return inject


def fsr_of(subject: Subject, model: Any, fingerprints: FingerprintSet) -> float:
    """Return the exact FSR of a model on a set, with the prompts and decoding of a subject."""
    decoding, prompt = subject.settings.decoding, subject.profile.prompt
    return exact_fsr(model, subject.tokenizer, fingerprints, decoding, prompt).mean


def rival_set(subject: Subject, own: FingerprintSet, count: int, seed: int) -> FingerprintSet:
    """Return a set of a thief's, of the same kind as the owner's and without any of its triggers, of ``count`` pairs.

    Built-in kinds are drawn anew, from another seed; of a file the make of its triggers is read off, as for near
    triggers. Large sets have fewer targets a pair, since no word is a target twice.

    Raises:
        InputError: if the words run out.
    """
    candidates = max(1, min(CANDIDATES, ANSWERS // count))
    triggers = {each.trigger for each in own}
    for turn in range(TURNS):
        found = _rival(subject, own, count, RIVAL + seed + turn, candidates)
        if not triggers & {each.trigger for each in found}:
            return replace(found, name="rival")
    raise InputError(f"no set of {count} pairs could be drawn without triggers of {own.name!r}.")


def _rival(subject: Subject, own: FingerprintSet, count: int, seed: int, candidates: int) -> FingerprintSet:
    tokenizer, lexicon = subject.tokenizer, Lexicon.shipped()
    if own.name == "nlf":
        return draw_natural_set(count, LENGTH, tokenizer, seed=seed, candidates=candidates)
    if own.name == "if":
        return instructional_set(count, seed)
    if own.name in CODE_MIXED:
        queries = draw_queries(lexicon, count, LENGTH, tokenizer, seed)
        made = code_mixed_set(own.name, queries, lexicon, subject.model, tokenizer, candidates=candidates, seed=seed)
        return made[0]
    words = words_from_rows(subject.datasets.alpaca, seed)
    bare = tuple(Fingerprint(text, ()) for text in near_triggers(own, words, count, seed))
    return with_candidates(FingerprintSet("rival", bare), candidates, tokenizer, seed)
