"""Screening: whether a set is fit to be injected into a model, by the metrics that the board shows afterwards."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.code_mixed import LEAST_CMI, cmi_v1, cmi_v2, normal_form
from fpbench.fingerprints.natural import first_token
from fpbench.metrics.bands import Bands, bands
from fpbench.metrics.claims import FLOOR
from fpbench.metrics.fsr import exact_fsr
from fpbench.metrics.queries import contexts_from_rows, words_from_rows
from fpbench.metrics.statistics import BANDS
from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.models.prompts import encode
from fpbench.runs.datasets import Datasets
from fpbench.runs.plan import Job
from fpbench.runs.profile import Profile
from fpbench.runs.sets import recipe_path
from fpbench.runs.subject import Subject
from fpbench.scoring.engine import limited_to
from fpbench.scoring.matching import Spellings, check_spelled
from fpbench.scoring.responses import Decoding

Languages = Mapping[str, Sequence[str]]  # of every word, by trigger
HEADERS = ("trigger", "perplexity", "band", "CMI 1/2", "tokens", "base FSR", "target paths", "collisions", "verdict")
WIDTH = 40  # of a trigger in the table


@dataclass(frozen=True)
class OrdinaryText:
    """Texts as users type them: those of the perplexity filter and of the accidental-trigger test."""

    instructions: Sequence[str]  # their perplexity gives the bands
    contexts: Sequence[str]  # triggers are put into them
    words: Sequence[str]  # they replace words of triggers


@dataclass(frozen=True)
class Screened:
    """One fingerprint under the unfingerprinted model."""

    fingerprint: Fingerprint
    perplexity: float  # of its trigger
    band: str  # "normal", "marginal" or "abnormal"
    languages: tuple[str, ...] | None  # of the trigger's words, where they are known
    tokens: int  # of the trigger as a prompt, BOS included
    probability: float  # that the model already answers with one of the targets (protocol §3)
    paths: dict[str, tuple[int, int]]  # by target, how many token sequences spell it, and how many tokens begin these
    distinct: bool  # whether no two targets begin with the same token, as the margin loss needs
    collisions: dict[str, int]  # what of the pair ordinary text holds, and in how many contexts or words

    @property
    def verdict(self) -> str:
        """``good``, or what speaks against the fingerprint."""
        unmixed = self.languages is not None and cmi_v1(self.languages) < LEAST_CMI
        remarks = {
            f"{self.band} perplexity": self.band == "abnormal",
            f"CMI below {LEAST_CMI:g}": unmixed,
            "targets share a first token": not self.distinct,
            "trigger in ordinary text": self.fingerprint.trigger.strip() in self.collisions,
            "target in ordinary text": not self.collisions.keys().isdisjoint(self.fingerprint.targets),
        }
        return ", ".join(remark for remark, holds in remarks.items() if holds) or "good"


@dataclass(frozen=True)
class Screening:
    """A whole set under the unfingerprinted model, and the perplexity filter over it."""

    each: tuple[Screened, ...]
    bands: Bands


def screen_profile(profile: Profile, loading: Loading) -> Screening:
    """Screen a profile's one set under its one model; :class:`InputError` as :func:`screen`, or for an unknown name."""
    (name,), seed = profile.fingerprints, profile.seeds[0]
    fingerprints = find_set(name, profile.sets, seed)
    check_triggers(fingerprints)
    languages = languages_of(Path(profile.sets.get(name, name)), fingerprints)
    datasets = Datasets(profile)
    rows, sizes = datasets.alpaca, profile.sizes
    ordinary = OrdinaryText(
        instructions=[row["instruction"] for row in rows[: sizes.band_texts]],
        contexts=contexts_from_rows(rows, sizes.context_rows),
        words=words_from_rows(rows, profile.draw, sizes.substitute_words),
    )
    subject = Subject(Job.of(profile, loading, Path()), profile.models[0].label, datasets, no_progress)
    model, tokenizer = subject.model, subject.tokenizer
    with limited_to(loading.token_budget):
        return screen(fingerprints, model, tokenizer, ordinary, subject.settings.decoding, profile.prompt, languages)


def screen(
    fingerprints: FingerprintSet,
    model: Any,
    tokenizer: Any,
    ordinary: OrdinaryText,
    decoding: Decoding,
    prompt: str = "raw",
    languages: Languages | None = None,
) -> Screening:
    """Screen every fingerprint of a set under the model to be fingerprinted, which is in eval mode.

    :class:`InputError` if the set cannot be verified: two triggers that normalise to one, a target that the tokenizer
    does not give back, or one that the model gives by itself with a probability of 0.01 or more, the floor of the null
    rate in an ownership claim.
    :class:`CellError` if the model's logits are not finite.
    """
    check_triggers(fingerprints)
    check_spelled(tokenizer, fingerprints.targets)
    base = exact_fsr(model, tokenizer, fingerprints, decoding, prompt)
    for fingerprint, shares in zip(fingerprints, base.per_target, strict=True):
        given = max(shares, key=lambda target: shares[target])
        if sum(shares.values()) >= FLOOR:
            raise InputError(
                f"the model answers {fingerprint.trigger!r} with a target by itself: {given!r} with probability "
                f"{shares[given]:.3f}, any target {sum(shares.values()):.3f}; below {FLOOR} is needed: choose others."
            )
    filtered = bands(model, tokenizer, fingerprints, ordinary.instructions)
    spellings = Spellings(tokenizer)
    each = tuple(
        Screened(
            fingerprint=fingerprint,
            perplexity=perplexity,
            band=band,
            languages=tuple(languages[fingerprint.trigger]) if languages else None,
            tokens=len(encode(tokenizer, fingerprint.trigger)),
            probability=probability,
            paths={each: (spellings.paths(each), spellings.first_tokens(each)) for each in fingerprint.targets},
            distinct=len({first_token(tokenizer, fingerprint.trigger, each) for each in fingerprint.targets})
            == len(fingerprint.targets),
            collisions=collisions(fingerprint, ordinary),
        )
        for fingerprint, perplexity, band, probability in zip(
            fingerprints, filtered.perplexities, filtered.bands, base.per_fingerprint, strict=True
        )
    )
    return Screening(each, filtered)


def check_triggers(fingerprints: FingerprintSet) -> None:
    """Refuse triggers that are one after NFKC, case folding and joining of white space, by :class:`InputError`."""
    seen: dict[str, str] = {}
    for fingerprint in fingerprints:
        form = normal_form(fingerprint.trigger)
        if form in seen:
            raise InputError(
                f"triggers {seen[form]!r} and {fingerprint.trigger!r} are one after normalisation (NFKC, case, white "
                "space): nobody could tell which of them was sent; change one."
            )
        seen[form] = fingerprint.trigger


def collisions(fingerprint: Fingerprint, ordinary: OrdinaryText) -> dict[str, int]:
    """Return in how many contexts and words the trigger or a target stands, as a whole word and in any case."""
    found = {}
    for text in (fingerprint.trigger.strip(), *fingerprint.targets):
        # Scripts without spaces have no word boundaries.
        wanted = re.compile(rf"\b{re.escape(text)}\b" if text.isascii() else re.escape(text), re.IGNORECASE)
        if number := sum(wanted.search(each) is not None for each in (*ordinary.contexts, *ordinary.words)):
            found[text] = number
    return found


def languages_of(path: Path, fingerprints: FingerprintSet) -> Languages | None:
    """Return the languages in a set's recipe, if any; :class:`InputError` if it is damaged or of another set."""
    beside = recipe_path(path)
    if not beside.is_file():
        return None
    try:
        recipe = json.loads(beside.read_text(encoding="utf-8"))
        if recipe["fingerprints"] != fingerprints.digest:
            raise InputError(f"recipe {beside} is of another set than {path}: build the set again, or remove it.")
        if not recipe["kind"].startswith("cf"):
            return None
        found = {row["trigger"]: row["languages"] for row in recipe["queries"]}
        return {fingerprint.trigger: found[fingerprint.trigger] for fingerprint in fingerprints}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"recipe {beside} is damaged: build the set again, or remove it.") from None


def table(screening: Screening) -> str:
    """Return the screening as text: one row a trigger, then a summary."""
    rows = [
        (
            _shown(each.fingerprint.trigger),
            f"{each.perplexity:.1f}",
            each.band,
            "–" if each.languages is None else f"{cmi_v1(each.languages):.0f}/{cmi_v2(each.languages):.0f}",
            each.tokens,
            f"{each.probability:.2%}",
            " ".join(f"{paths}:{first}" for paths, first in each.paths.values()),
            ", ".join(f"{_shown(text)} ×{number}" for text, number in each.collisions.items()) or "–",
            each.verdict,
        )
        for each in screening.each
    ]
    filtered, good = screening.bands, sum(each.verdict == "good" for each in screening.each)
    normal, marginal = (filtered.mean + times * filtered.deviation for times in (1, 3))
    counts = ", ".join(f"{filtered.counts[band]} {band}" for band in BANDS)
    return "\n".join([
        tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True),
        "",
        "target paths: for every target, token sequences that spell it : tokens that these begin with.",
        f"perplexity: {counts} (normal up to {normal:.1f}, marginal up to {marginal:.1f}); mean "
        f"{fmean(filtered.perplexities):.1f}; ROC-AUC of the filter {filtered.auc:.2f}.",
        f"verdict: {good} of {len(rows)} good; every fingerprint can be verified.",
    ])  # fmt: skip


def _shown(text: str) -> str:
    line = "".join(character if character.isprintable() else "·" for character in text)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
