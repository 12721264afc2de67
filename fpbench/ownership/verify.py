"""Black-box verification: does this model, or whatever answers at this URL, carry these fingerprints?"""

import contextlib
import gc
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fpbench.adversaries.base import AdversaryContext, Attack
from fpbench.adversaries.conditions import adversaries, changes_weights, check
from fpbench.data import parse, read_text
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.library import BUILT_IN
from fpbench.fingerprints.sealing import commitment, reveal, triggers
from fpbench.http import Server
from fpbench.hub import lock
from fpbench.hub.download import HubSource
from fpbench.metrics.claims import claim
from fpbench.models.checkpoints import base_of_adapter, checkpoint_digest, resolve
from fpbench.models.handed_in import OwnTokenizer, remarks
from fpbench.models.loading import Loading, check_ready, pick_device
from fpbench.models.meter import Progress, no_progress
from fpbench.models.objects import check_text
from fpbench.ownership.evidence import LENGTH, LISTED, RULES, chance
from fpbench.ownership.interview import Interview, Transcript, opened
from fpbench.ownership.sequential import CARRIED, SequentialTest, fingerprints_needed, null_rates, permutation_p_value
from fpbench.ownership.suspects import Endpoint, LocalSuspect, Sampling, Suspect
from fpbench.ownership.verification import WEAKER, Dated, Verification, ratio
from fpbench.registry import unknown
from fpbench.runs.profile import Profile, load_profile
from fpbench.runs.sets import Given, named, recipe_path

TIMEOUT = 60.0
COMPARED = 4_000  # characters of the text on which the perplexities of suspect and null models are compared


@dataclass(frozen=True)
class Question:
    """The question of a verification, and what asking it may cost; fields are as the arguments of :func:`verify`."""

    suspect: str
    base: str | None = None
    unrelated: tuple[str, ...] = ()
    level: float = 1e-3
    budget: int | None = None
    transcript: Path | None = None
    served_model: str | None = None
    timeout: float = TIMEOUT
    api_key_env: str | None = None
    adversary: str | None = None
    evidence: str = "prefix"

    def __post_init__(self) -> None:
        """Refuse numbers outside their range with an InputError."""
        if not 0 < self.level < 1:
            raise InputError(f"the level must be above 0 and below 1, found {self.level}: 1e-3 is usual.")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"the budget must be 1 request or more, found {self.budget}.")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"the time-out must be a number of seconds above 0, found {self.timeout}.")
        if self.evidence not in RULES:
            raise unknown("rule of evidence", self.evidence, list(RULES))
        if self.adversary is not None:
            if self.remote:
                raise InputError("an adversary is simulated on a model at hand: a server does whatever it does.")
            check(self.adversary)
            if changes_weights(self.adversary):
                raise InputError(f"adversary {self.adversary!r} changes weights: hand in the changed checkpoint.")
        if self.served_model is not None and not self.remote:
            raise InputError("a served model is named for an endpoint only: leave it out for a model at hand.")

    @property
    def remote(self) -> bool:
        """True if the suspect is behind a URL."""
        return "://" in self.suspect

    @property
    def decoded_like(self) -> list[str] | None:
        """The model whose decoding is asked for; ``None`` if none is at hand."""
        named = self.base or (None if self.remote else self.suspect)
        return None if named is None else [named]

    @property
    def null_models(self) -> tuple[str, ...]:
        """Base and unrelated models."""
        return (*([self.base] if self.base is not None else []), *self.unrelated)


def verify(
    suspect: str,
    fingerprints: Given,
    *,
    base: str | None = None,
    unrelated: Sequence[str] = (),
    level: float = 1e-3,
    budget: int | None = None,
    transcript: str | os.PathLike[str] | None = None,
    served_model: str | None = None,
    timeout: float = TIMEOUT,
    api_key_env: str | None = None,
    adversary: str | None = None,
    evidence: str = "prefix",
    profile: str = "micro",
    prompt: str | None = None,
    seed: int | None = None,
) -> Verification:
    """Test whether a suspect carries a set of fingerprints, as ``fpbench verify`` does.

    Asks one fingerprint after another, in a seeded order and each once, until the evidence is enough.

    Args:
        suspect: folder, hub id, or URL of an OpenAI-compatible server such as ``http://127.0.0.1:8000/v1``.
        fingerprints: built-in set, ``.jsonl`` or ``.json`` file, or the private openings of a sealed set; or a set, or
            a list of dictionaries of ``trigger`` and ``targets``.
        base: the unfingerprinted model, from which null rates come.
        unrelated: further models that do not carry the fingerprints.
        level: α, the largest probability of a false claim.
        budget: requests at most; ``None`` for no limit.
        transcript: file that a later call of the same question goes on from; ``None`` keeps none.
        served_model: the suspect's name on its server; left out of requests by default.
        timeout: seconds that one request may take.
        api_key_env: environment variable with the server's API key; ``FPBENCH_API_KEY`` by default, and for
            api.openai.com alone else ``OPENAI_API_KEY``.
        adversary: run-time adversary, such as ``"suppress@3"``: simulates what the server of a thief would answer, to
            see how many queries it takes.
        evidence: what counts as a match: ``"prefix"``, ``"lenient"`` or ``"rank"`` (docs/verify.md).
        profile: gives the decoding: of the base, else the suspect, if it lists that, else of its first model.
        prompt: ``"raw"`` or ``"chat"``; the profile's by default.
        seed: of the order of asking and of every response; the profile's by default.

    Returns:
        The verdict and everything that it rests on. Evidence that is enough gives ``"claim"`` for a sealed or a
        built-in set and ``"match"`` for one that nothing dates; a suspect that stops answering ``"undecided"``.

    Raises:
        InputError: if anything asked for is of another type, unknown or malformed, or the server refuses the first
            request.
        CellError: if a model's logits are not finite.
        StorageError: if the transcript cannot be written any more.
    """
    check_text("suspect", suspect, "micro")
    path = None if transcript is None else Path(transcript)
    question = Question(
        suspect, base, tuple(unrelated), level, budget, path, served_model, timeout, api_key_env, adversary, evidence
    )
    with named(fingerprints) as name:
        return verify_suspect(
            asked_profile(question, name, profile, prompt, seed), question, Loading(pick_device(None))
        )


def asked_profile(question: Question, fingerprints: str, profile: str, prompt: str | None, seed: int | None) -> Profile:
    """Return the profile of a question: the decoding of whom it asks for, with one set."""
    seeds = None if seed is None else [seed]
    changes: dict[str, Any] = {"methods": [], "fingerprints": [fingerprints], "prompt": prompt, "seeds": seeds}
    return load_profile(profile, models=question.decoded_like, **changes)


def verify_suspect(
    profile: Profile,
    question: Question,
    loading: Loading,
    progress: Progress = no_progress,
    log: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Test a suspect with the one set, the decoding, the prompt and the first seed of a profile; as :func:`verify`.

    ``log`` is told which host is asked, and with which key, before anything is sent.
    """
    seed = profile.seeds[0]
    given = GivenSet.load(profile.fingerprints[0], profile.sets, seed)
    fingerprints, models = given.fingerprints, Models.found(question, loading)
    server = Server(question.suspect, question.api_key_env, timeout=question.timeout) if question.remote else None
    sampling, rule = _sampling(profile, fingerprints, models, loading), question.evidence
    if rule == "lenient":
        sampling = replace(sampling, max_tokens=max(sampling.max_tokens, LENGTH))
    identity = {  # everything that decides what is asked and how it is judged
        "suspect": models.digest or {"url": question.suspect, "model": question.served_model},
        "fingerprints": given.digest,
        "null models": [checkpoint_digest(folder) for folder in models.nulls],
        "precision": loading.precision,
        "level": question.level,
        "budget": question.budget,
        "decoding": asdict(sampling),
        "seed": seed,
    } | ({} if question.adversary is None else {"adversary": question.adversary})
    identity |= {} if rule == "prefix" else {"evidence": rule}

    def probabilities(model: Any, tokenizer: Any, attack: Attack = Attack()) -> tuple[float, ...]:  # noqa: B008
        from fpbench.metrics.fsr import exact_fsr
        from fpbench.scoring.responses import Decoding

        decoding = Decoding(**sampling.numbers)
        return exact_fsr(model, tokenizer, fingerprints, decoding, sampling.prompt, attack).per_fingerprint

    text = None if server is not None or not models.nulls else _text(profile)

    benign = _benign(profile) if rule == "rank" else ()  # no other rule reads them

    def of_null(folder: Path) -> tuple[tuple[float, ...], float | None]:
        with _loaded(folder, models, loading) as (model, tokenizer):
            decoding = profile.models[0].decoding
            rates = chance(rule, model, tokenizer, fingerprints, decoding, sampling.prompt, seed, benign)
            return rates, _loss(model, tokenizer, text)

    weaker, own_tokenizer, both = None, models.own_tokenizer(loading), []
    with _resumed(question.transcript, identity) as transcript:
        nulls = [of_null(folder) for folder in progress(models.nulls, "null rates")]
        measured, losses = [rates for rates, _ in nulls], [loss for _, loss in nulls]
        null = null_rates(measured, len(fingerprints))
        order = random.Random(seed).sample(range(len(fingerprints)), len(fingerprints))
        asked = [number for number in order if null[number] < CARRIED][: question.budget]
        if not asked:
            raise InputError(
                f"a null model answers every fingerprint of {fingerprints.name!r} half of the time: no evidence"
            )
        test = SequentialTest(tuple(null[number] for number in asked), question.level)
        interview, exact = Interview(fingerprints, asked, test, seed, question.budget, rule), None
        suspect: Suspect
        if server is not None:
            suspect = Endpoint(server, question.served_model, sampling, LISTED if rule == "rank" else 1)
            suspect.refused.extend(transcript.refused)
            log(server.introduction)
            verdict, reason, evidence = interview.conduct(suspect, transcript, progress)
        else:
            assert models.suspect is not None, "a suspect that is not behind a URL is at hand"
            with _loaded(models.suspect, models, loading) as (model, tokenizer):
                attack = _attack(question, profile, models, loading, model, tokenizer)
                own = probabilities(model, tokenizer, attack)
                if own_tokenizer is not None:
                    with own_tokenizer.serving(model) as brought:
                        rates = fmean(own), fmean(probabilities(model, brought))
                    both.append("exact FSR {:.1%} by the base's tokenizer, {:.1%} by its own".format(*rates))
                if rule == "prefix":  # by the others there are no exact rates
                    exact = claim(own, measured or [[0.0] * len(own)], question.level)
                if text is not None:
                    tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
                    weaker = _weaker(question.null_models, losses, _loss(model, tokenizer, text), tokens)
                suspect = LocalSuspect(model, tokenizer, sampling, attack, listed=rule == "rank")
                verdict, reason, evidence = interview.conduct(suspect, transcript, progress)
    if question.adversary is not None:
        both.append(f"simulated: its server is that of a thief, under {question.adversary}")
    if verdict == "claim" and given.dated is None:
        verdict = "match"
    needed = permutation = None
    if verdict == "no claim":
        matched = sum(each.target is not None for each in evidence)
        needed = fingerprints_needed(matched, len(evidence), [each.null for each in evidence], test.level)
    if given.dealt:
        begins = [[each.response.startswith(other.targets) for other in fingerprints] for each in evidence]
        permutation = permutation_p_value(begins, [each.place - 1 for each in evidence])
    last = next(reversed(transcript.answers.values()), None)  # its seed aside, every answer has the same numbers
    return Verification(
        verdict=verdict,
        reason=reason,
        suspect=question.suspect,
        fingerprints=fingerprints.name,
        size=len(fingerprints),
        dated=given.dated,
        level=question.level,
        null_models=question.null_models,
        largest_null=max(map(sum, measured)) if measured else None,
        weaker=weaker,
        uninformative=sum(rate >= CARRIED for rate in null),
        bound=test.bound,
        threshold=test.threshold,
        evidence=evidence,
        queries=transcript.requests,
        budget=question.budget,
        permutation=permutation,
        needed=needed,
        exact=exact,
        decoding={
            "asked": asdict(sampling),
            "refused": list(transcript.refused),
            "accepted": {} if last is None else dict(last.decoding),
        },
        revealed=() if given.openings is None else tuple(reveal(given.openings, each.trigger) for each in evidence),
        remarks=() if models.suspect is None else (*remarks(models.suspect, own_tokenizer, models.base), *both),
        rule=rule,
    )


def _attack(
    question: Question, profile: Profile, models: "Models", loading: Loading, model: Any, tokenizer: Any
) -> Attack:
    """Return what the thief that is simulated does to the suspect's queries and sampling; nothing where none is."""
    if question.adversary is None:
        return Attack()
    from fpbench.models.prompts import render

    base = models.nulls[0] if question.base is not None else None
    context = AdversaryContext(
        model,
        tokenizer,
        profile.models[0].decoding,
        render=lambda text: render(tokenizer, text, profile.prompt),
        seed=profile.seeds[0],
        instructions=_benign(profile),
        base=None if base is None else lambda: loading.load(base, models.tokenizer_of(base))[0],
    )
    return Attack.on(adversaries(question.adversary), context)


def _benign(profile: Profile) -> Sequence[str]:
    """Return ordinary instructions, on which nothing is trained; none where the profile has no such data."""
    from fpbench.runs.datasets import Datasets

    return [row["instruction"] for row in Datasets(profile).benign] if "alpaca" in profile.data else ()


def _sampling(profile: Profile, fingerprints: FingerprintSet, models: "Models", loading: Loading) -> Sampling:
    """Check that every model at hand can be measured, and return how responses are sampled."""
    # Without a tokenizer at hand: a token holds a byte at least.
    length = max(len(target.encode()) for target in fingerprints.targets) + 4
    if at_hand := [*([models.suspect] if models.suspect else []), *models.nulls]:
        from fpbench.scoring.matching import check_spelled
        from fpbench.scoring.responses import response_length

        tokenizers = [check_ready(each, profile.prompt, loading, models.tokenizer_of(each)) for each in at_hand]
        for tokenizer in tokenizers:
            check_spelled(tokenizer, fingerprints.targets)
        length = response_length(tokenizers[0], fingerprints.targets)
    model = profile.models[0]
    return Sampling(model.temperature, model.top_p, model.top_k, length, profile.prompt)


def _text(profile: Profile) -> str | None:
    """Return the beginning of the profile's text for perplexity; ``None`` where no file at hand holds it."""
    source = profile.data.get("wikitext")
    try:
        elsewhere = source is None or (isinstance(parse(source), HubSource) and source not in lock.pins())
        return None if source is None or elsewhere else read_text(source)[:COMPARED]
    except InputError:
        return None


def _loss(model: Any, tokenizer: Any, text: str | None) -> float | None:
    """Return −log p of a whole text (nats), which tokenizers do not change the unit of; ``None`` if it has none."""
    if text is None:
        return None
    from fpbench.scoring.perplexity import text_perplexities

    tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    try:
        return math.log(text_perplexities(model, tokenizer, [text])[0]) * tokens
    except CellError:
        return math.inf
    except InputError:  # no token to begin a text with
        return None


def _weaker(
    names: Sequence[str], losses: Sequence[float | None], own: float | None, tokens: int
) -> tuple[tuple[str, float], ...] | None:
    """Return the null models whose perplexity is much higher, and how many times, per token of the suspect's."""
    if own is None or None in losses or math.isinf(own):
        return None
    times = [(name, ratio((loss - own) / tokens)) for name, loss in zip(names, losses, strict=True) if loss is not None]
    return tuple((name, each) for name, each in times if each > WEAKER)


@contextlib.contextmanager
def _resumed(path: Path | None, identity: Mapping[str, Any]) -> Iterator[Transcript]:
    """Open the transcript; remove it again if the input turns out to be wrong before anything was answered."""
    with opened(path, identity) as transcript:
        try:
            yield transcript
        except InputError:
            # The user will ask otherwise, which is another question.
            if path is not None and not transcript.answers:
                path.unlink()
            raise


@contextlib.contextmanager
def _loaded(folder: Path, models: "Models", loading: Loading) -> Iterator[tuple[Any, Any]]:
    """Load a model and its tokenizer, gone afterwards: one is in memory at a time."""
    from fpbench.scoring.engine import limited_to

    with limited_to(loading.token_budget):
        yield loading.load(folder, models.tokenizer_of(folder))
    gc.collect()


@dataclass(frozen=True)
class Models:
    """The checkpoint folders of suspect, base and all null models; ``None`` for a suspect behind a URL or no base."""

    suspect: Path | None
    base: Path | None
    nulls: tuple[Path, ...]

    @classmethod
    def found(cls, question: Question, loading: Loading) -> "Models":
        """Find the models of a question; InputError if one is not there."""
        nulls = tuple(resolve(name, allow_pickle=loading.allow_pickle) for name in question.null_models)
        suspect = None
        if not question.remote:
            suspect = resolve(question.suspect, revision=loading.revision, allow_pickle=loading.allow_pickle)
        return cls(suspect, None if question.base is None else nulls[0], nulls)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the suspect's files; ``None`` behind a URL."""
        return None if self.suspect is None else checkpoint_digest(self.suspect, base=self.base)

    def tokenizer_of(self, folder: Path) -> Path | None:
        """Return the base whose tokenizer serves: for the suspect alone the one named, or that of an adapter."""
        return (self.base or base_of_adapter(folder)) if folder == self.suspect else None

    def own_tokenizer(self, loading: Loading) -> OwnTokenizer | None:
        """Return the suspect's tokenizer where it is not that of its base."""
        if self.suspect is None or (base := self.tokenizer_of(self.suspect)) is None:
            return None
        return OwnTokenizer.of(self.suspect, base, trust_remote_code=loading.trust_remote_code)


@dataclass(frozen=True)
class GivenSet:
    """The set to test for, and what is known about how it was made and sealed."""

    fingerprints: FingerprintSet
    openings: Mapping[str, Any] | None  # the private document of a sealed set; None for others
    dealt: bool  # whether the set's recipe says that a seed dealt its targets to its triggers
    dated: Dated | None

    @classmethod
    def load(cls, name: str, files: Mapping[str, str], seed: int) -> "GivenSet":
        """Find a set by name.

        Args:
            name: a built-in set, a name of ``files``, a ``.jsonl`` file, or a ``.json`` file of openings or with
                a list of fingerprints.
            files: set names that a profile maps to files of its own.
            seed: draws the keys of ``if``.

        Raises:
            InputError: if it is unknown or malformed.
        """
        openings = None
        if name.endswith(".json") and name not in files and (openings := _openings(Path(name))) is not None:
            pairs = [opening["fingerprint"] for opening in openings["openings"]]
            found = FingerprintSet(
                Path(name).stem.removesuffix(OPENINGS),
                tuple(Fingerprint(pair["trigger"], tuple(pair["targets"])) for pair in pairs),
            )
        else:
            found = find_set(name, files, seed)
        built_in = name in BUILT_IN and name not in files
        dated: Dated | None = "built in" if built_in else None if openings is None else "sealed"
        return cls(found, openings, _dealt(Path(files.get(name, name)), found), dated)

    @property
    def digest(self) -> str:
        """SHA-256 of the set; of a sealed one only of its commitments, which says nothing about any pair."""
        if self.openings is None:
            return self.fingerprints.digest
        return hashlib.sha256("".join(sorted(map(commitment, self.openings["openings"]))).encode()).hexdigest()


OPENINGS = ".openings"  # before the ending of the private file of a sealed set


def _openings(path: Path) -> Mapping[str, Any] | None:
    """Return the openings of a sealed set; ``None`` for a file that holds a list, which is a set that is not sealed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): check the path, or whether it is whole.") from None
    if isinstance(document, list):
        return None
    if not triggers(document):
        raise InputError(f"{path} holds no fingerprints: expected the openings of a sealed set.")
    return dict(document)


def _dealt(path: Path, fingerprints: FingerprintSet) -> bool:
    """Return True if the recipe beside a set says that a seed dealt its targets, each dealing as likely, none twice.

    The code-mixed recipe, which names its queries, deals the words that the model knows best first: it does not count.
    """
    try:
        recipe = json.loads(recipe_path(path.with_stem(path.stem.removesuffix(OPENINGS))).read_text(encoding="utf-8"))
        drawn = recipe["fingerprints"] == fingerprints.digest and {"seed", "candidates"} <= recipe.keys()
        drawn = drawn and "queries" not in recipe
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return drawn and len(fingerprints.targets) == sum(len(each.targets) for each in fingerprints)
