"""The set of a verification: built-in, a file, or a sealed set's openings, of which only what was used is shown."""

import contextlib
import gc
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.sealing import commitment, reveal, triggers
from fpbench.http import Server
from fpbench.metrics.claims import Claim, claim
from fpbench.models.checkpoints import checkpoint_digest, resolve
from fpbench.models.loading import Loading, load_model, pick_device
from fpbench.models.meter import Progress, no_progress
from fpbench.ownership.interview import Interview, Sampling, Transcript, opened
from fpbench.ownership.sequential import CARRIED, SequentialTest, fingerprints_needed, null_rates, permutation_p_value
from fpbench.ownership.suspects import KEYS, Endpoint
from fpbench.ownership.verification import Evidence, Verification
from fpbench.runs.profile import Profile, load_profile
from fpbench.runs.sets import recipe_path

OPENINGS = ".openings"


@dataclass(frozen=True)
class Secrets:
    """A set and what is known about how it was made and sealed.

    Attributes:
        fingerprints: the set.
        openings: the private document of a sealed set; ``None`` for others.
        dealt: whether the set's recipe says that a seed dealt its targets to its triggers.
    """

    fingerprints: FingerprintSet
    openings: Mapping[str, Any] | None
    dealt: bool

    @classmethod
    def load(cls, name: str, files: Mapping[str, str], seed: int) -> "Secrets":
        """Find a set.

        Args:
            name: a built-in set, a name of ``files``, a ``.jsonl`` file, or the ``.json`` file of openings.
            files: set names that a profile maps to files of its own.
            seed: draws the keys of ``if``.

        Raises:
            InputError: if it is none of these, or malformed.
        """
        openings = None
        if name.endswith(".json") and name not in files:
            openings = _openings(Path(name))
            pairs = [opening["fingerprint"] for opening in openings["openings"]]
            found = FingerprintSet(
                Path(name).stem.removesuffix(OPENINGS),
                tuple(Fingerprint(pair["trigger"], tuple(pair["targets"])) for pair in pairs),
            )
        else:
            found = find_set(name, files, seed)
        return cls(found, openings, _dealt(Path(files.get(name, name)), found))

    @property
    def digest(self) -> str:
        """SHA-256 of the set; of a sealed one only of its commitments, which says nothing about any pair."""
        if self.openings is None:
            return self.fingerprints.digest
        return hashlib.sha256("".join(sorted(map(commitment, self.openings["openings"]))).encode()).hexdigest()

    def reveal(self, trigger: str) -> Mapping[str, Any]:
        """The opening of one pair of a sealed set."""
        assert self.openings is not None, "only a sealed set has openings"
        return reveal(self.openings, trigger)


def _openings(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): check the path, or whether it is whole.") from None
    if not triggers(document):
        raise InputError(f"{path} holds no fingerprints: expected the openings of a sealed set.")
    return dict(document)


def _dealt(path: Path, fingerprints: FingerprintSet) -> bool:
    """Whether the recipe beside a set says that a seed dealt its targets, every dealing as likely, none of them twice.

    The code-mixed recipe, which names its queries, deals the words that the model knows best first: it does not count.
    """
    try:
        recipe = json.loads(recipe_path(path.with_stem(path.stem.removesuffix(OPENINGS))).read_text(encoding="utf-8"))
        drawn = recipe["fingerprints"] == fingerprints.digest and {"seed", "candidates"} <= recipe.keys()
        drawn = drawn and "queries" not in recipe
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return drawn and len(fingerprints.targets) == sum(len(each.targets) for each in fingerprints)


# Black-box verification: does this model, or whatever answers at this URL, carry these fingerprints?


TIMEOUT = 60.0


@dataclass(frozen=True)
class Question:
    """What is to be found out, and what that may cost.

    Attributes:
        suspect: folder, hub id, or URL of an OpenAI-compatible server.
        base: the unfingerprinted model, if at hand.
        unrelated: models that do not carry the fingerprints.
        level: α.
        budget: requests at most; ``None`` for no limit.
        transcript: file to resume from; ``None`` keeps none.
        served_model: the suspect's name on its server.
        timeout: seconds that one request may take.
    """

    suspect: str
    base: str | None = None
    unrelated: tuple[str, ...] = ()
    level: float = 1e-3
    budget: int | None = None
    transcript: Path | None = None
    served_model: str | None = None
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        """Refuse numbers outside their range.

        Raises:
            InputError: naming the number.
        """
        if not 0 < self.level < 1:
            raise InputError(f"the level must be above 0 and below 1, found {self.level}: 1e-3 is usual.")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"the budget must be 1 request or more, found {self.budget}.")
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"the time-out must be a number of seconds above 0, found {self.timeout}.")
        if self.served_model is not None and not self.remote:
            raise InputError("a served model is named for an endpoint only: leave it out for a model at hand.")

    @property
    def remote(self) -> bool:
        """Whether the suspect is behind a URL."""
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
    fingerprints: str,
    *,
    base: str | None = None,
    unrelated: Sequence[str] = (),
    level: float = 1e-3,
    budget: int | None = None,
    transcript: str | os.PathLike[str] | None = None,
    served_model: str | None = None,
    timeout: float = TIMEOUT,
    profile: str = "micro",
    prompt: str | None = None,
    seed: int | None = None,
) -> Verification:
    """Test whether a suspect carries a set of fingerprints, as ``fpbench verify`` does.

    Asks one fingerprint after another, in a seeded order and each once, until the evidence is enough.

    Args:
        suspect: folder, hub id, or URL of an OpenAI-compatible server such as ``http://127.0.0.1:8000/v1``.
        fingerprints: built-in set, ``.jsonl`` file, or the private openings of a sealed set.
        base: the unfingerprinted model, from which null rates come.
        unrelated: further models that do not carry the fingerprints.
        level: α, the largest probability of a false claim.
        budget: requests at most.
        transcript: file that a later call of the same question goes on from.
        served_model: the suspect's name on its server; left out of requests by default.
        timeout: seconds that one request may take.
        profile: gives the decoding: of the base, else the suspect, if it lists that, else of its first model.
        prompt: ``"raw"`` or ``"chat"``; the profile's by default.
        seed: of the order of asking and of every response; the profile's by default.

    Returns:
        The verdict and everything that it rests on; a suspect that stops answering gives ``"undecided"``.

    Raises:
        InputError: if anything asked for is unknown or malformed, or the server refuses the first request.
        CellError: if a model's logits are not finite.
        StorageError: if the transcript cannot be written any more.
    """
    path = None if transcript is None else Path(transcript)
    question = Question(suspect, base, tuple(unrelated), level, budget, path, served_model, timeout)
    wanted = load_profile(
        profile,
        models=question.decoded_like,
        methods=[],
        fingerprints=[fingerprints],
        prompt=prompt,
        seeds=None if seed is None else [seed],
    )
    return verify_suspect(wanted, question, Loading(pick_device(None)))


def verify_suspect(
    profile: Profile, question: Question, loading: Loading, progress: Progress = no_progress
) -> Verification:
    """Test a suspect with the one set, the decoding, the prompt and the first seed of a profile."""
    return _Verifier(profile, question, loading, progress).verify()


class _Verifier:
    """One verification, from files to verdict."""

    def __init__(self, profile: Profile, question: Question, loading: Loading, progress: Progress) -> None:
        """Find everything that is needed; no weights are read yet."""
        self.profile, self.question, self.loading, self.progress = profile, question, loading, progress
        self.secrets = Secrets.load(profile.fingerprints[0], profile.sets, profile.seeds[0])
        self.set = self.secrets.fingerprints
        self.nulls = [resolve(name, allow_pickle=loading.allow_pickle) for name in question.null_models]
        # What no tokenizer is at hand for takes a token a byte at most.
        length = max(len(target.encode()) for target in self.set.targets) + 4
        self.folder: Path | None = None
        if question.remote:
            self.server = Server(question.suspect, KEYS, timeout=question.timeout)
        else:
            self.folder = resolve(question.suspect, revision=loading.revision, allow_pickle=loading.allow_pickle)
        self.base = self.nulls[0] if question.base is not None else None
        if spoken := [*([self.folder] if self.folder else []), *self.nulls]:
            from fpbench.models.loading import check_ready
            from fpbench.scoring.responses import response_length

            tokenizer, *_ = [check_ready(each, profile.prompt, loading, self._spare(each)) for each in spoken]
            length = response_length(tokenizer, self.set.targets)
        model = profile.models[0]
        self.sampling = Sampling(model.temperature, model.top_p, model.top_k, length, profile.prompt)
        draw = random.Random(profile.seeds[0])
        self.order = draw.sample(range(len(self.set)), len(self.set))

    def verify(self) -> Verification:
        """Ask, judge and report."""
        path = self.question.transcript
        with opened(path, self._identity()) as transcript:
            try:
                return self._judge(transcript)
            except InputError:
                # The user will ask otherwise, which is another question.
                if path is not None and not transcript.answers:
                    path.unlink()
                raise

    def _spare(self, folder: Path) -> Path | None:
        """The checkpoint whose tokenizer serves if a folder brings none: the base's for the suspect alone."""
        return self.base if folder == self.folder else None

    def _identity(self) -> dict[str, Any]:
        """Everything that decides what is asked and how it is judged."""
        suspect: Any = {"url": self.question.suspect, "model": self.question.served_model}
        return {
            "suspect": checkpoint_digest(self.folder) if self.folder else suspect,
            "fingerprints": self.secrets.digest,
            "null models": [checkpoint_digest(folder) for folder in self.nulls],
            "precision": self.loading.precision,
            "level": self.question.level,
            "budget": self.question.budget,
            "decoding": asdict(self.sampling),
            "seed": self.profile.seeds[0],
        }

    def _judge(self, transcript: Transcript) -> Verification:
        measured = [self._probabilities(folder) for folder in self.progress(self.nulls, "null rates")]
        null = null_rates(measured, len(self.set))
        asked = [number for number in self.order if null[number] < CARRIED]
        if not asked:
            raise InputError(
                f"a null model answers every fingerprint of {self.set.name!r} half of the time: no evidence"
            )
        asked = asked[: self.question.budget]
        test = SequentialTest(tuple(null[number] for number in asked), self.question.level)
        interview = Interview(self.set, asked, test, self.profile.seeds[0], self.question.budget)
        exact: Claim | None = None
        if self.folder is None:
            suspect = Endpoint(self.server, self.question.served_model, self.sampling)
            suspect.refused.extend(transcript.refused)
            verdict, reason, evidence = interview.hold(suspect, transcript, self.progress)
        else:
            from fpbench.ownership.suspects import LocalSuspect

            with self._loaded(self.folder) as (model, tokenizer):
                own = self._measure(model, tokenizer)
                exact = claim(own, measured or [[0.0] * len(own)], self.question.level)
                local = LocalSuspect(model, tokenizer, self.sampling)
                verdict, reason, evidence = interview.hold(local, transcript, self.progress)
        matched = sum(each.target is not None for each in evidence)
        rates = [each.null for each in evidence]
        return Verification(
            verdict=verdict,
            reason=reason,
            suspect=self.question.suspect,
            fingerprints=self.set.name,
            size=len(self.set),
            level=self.question.level,
            null_models=self.question.null_models,
            largest_null=max(map(sum, measured)) if measured else None,
            uninformative=sum(rate >= CARRIED for rate in null),
            bound=test.bound,
            threshold=test.threshold,
            evidence=evidence,
            queries=transcript.requests,
            budget=self.question.budget,
            permutation=self._permutation(evidence) if self.secrets.dealt else None,
            needed=fingerprints_needed(matched, len(rates), rates, test.level) if verdict == "no claim" else None,
            exact=exact,
            decoding={"asked": asdict(self.sampling), "refused": list(transcript.refused)} | _accepted(transcript),
            revealed=tuple(self.secrets.reveal(each.trigger) for each in evidence if self.secrets.openings is not None),
            remarks=self._remarks(),
        )

    def _remarks(self) -> tuple[str, ...]:
        """What is to be said of a suspect at hand; a match is one of texts, so other tokenizers are no matter."""
        if self.folder is None:
            return ()
        from fpbench.models.loading import remarks

        return tuple(remarks(self.folder, None))

    def _permutation(self, evidence: Sequence[Evidence]) -> float | None:
        """The p-value of the dealing, among all fingerprints of the set."""
        begins = [[each.response.startswith(other.targets) for other in self.set] for each in evidence]
        return permutation_p_value(begins, [each.place - 1 for each in evidence])

    def _probabilities(self, folder: Path) -> tuple[float, ...]:
        with self._loaded(folder) as (model, tokenizer):
            return self._measure(model, tokenizer)

    def _measure(self, model: Any, tokenizer: Any) -> tuple[float, ...]:
        """The exact p_i of a loaded model."""
        from fpbench.metrics.fsr import fsr

        how = self.sampling
        found = fsr(
            model,
            tokenizer,
            self.set,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            prompt=how.prompt,
        )
        return found.per_fingerprint

    @contextlib.contextmanager
    def _loaded(self, folder: Path) -> Iterator[tuple[Any, Any]]:
        """A model and its tokenizer, gone afterwards: one is in memory at a time."""
        from fpbench.scoring.engine import limited_to

        budget = self.loading.token_budget
        with contextlib.nullcontext() if budget is None else limited_to(budget):
            yield load_model(
                folder,
                device=self.loading.device,
                dtype=self.loading.dtype,
                trust_remote_code=self.loading.trust_remote_code,
                allow_pickle=self.loading.allow_pickle,
                tokenizer_of=self._spare(folder),
            )
        gc.collect()


def _accepted(transcript: Transcript) -> dict[str, Any]:
    """The numbers that the last request was answered with; the seed differs from request to request."""
    last = next(reversed(transcript.answers.values()), None)
    return {"accepted": {} if last is None else dict(last.decoding)}
