"""Asking a suspect for one fingerprint after another, until the evidence is enough or nothing more may be asked."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.models.remote import NoAnswer
from fpbench.ownership.report import Evidence, Verdict
from fpbench.ownership.sequential import SequentialTest
from fpbench.ownership.transcript import Answer, Transcript


@dataclass(frozen=True)
class Sampling:
    """How a response is to be sampled, as the protocol has it (§2).

    Attributes:
        temperature: above 0; it, ``top_p`` and ``top_k`` as in :class:`~fpbench.models.decoding.Decoding`.
        top_p: nucleus mass.
        top_k: number of tokens kept; 0 keeps everything.
        max_tokens: length of a response, in tokens.
        prompt: ``"raw"`` or ``"chat"``.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    prompt: str


class Told(NamedTuple):
    """Whom a suspect tells what it does: of every request before it is sent, and of what came to nothing."""

    asking: Callable[[], None]
    failed: Callable[[str], None]
    turned_down: Callable[[str], None]


class Suspect(Protocol):
    """Whoever answers triggers."""

    def respond(self, trigger: str, seed: int, told: Told) -> Answer:
        """Sample one response.

        Raises:
            NoAnswer: if there is none to be had.
        """


class BudgetSpent(Exception):
    """No further request may be sent."""


@dataclass(frozen=True)
class Interview:
    """What is asked, of whom it is not known yet.

    Attributes:
        fingerprints: the whole set.
        asked: places in the set, from 0, in the order of asking.
        test: with a null rate for each of them.
        seed: that of every request is drawn from it and the place.
        budget: requests at most, those of earlier runs included; ``None`` for no limit.
    """

    fingerprints: FingerprintSet
    asked: Sequence[int]
    test: SequentialTest
    seed: int
    budget: int | None

    def hold(
        self,
        suspect: Suspect,
        transcript: Transcript,
        progress: Callable[[Iterable[int], str], Iterable[int]],
    ) -> tuple[Verdict, str, tuple[Evidence, ...]]:
        """Ask what the transcript does not answer yet.

        Returns:
            The verdict, why the asking ended, and the evidence in the order of asking.
        """
        evidence: list[Evidence] = []
        for number in progress(self.asked, "asking"):
            try:
                answer = transcript.answers.get(number) or self._ask(suspect, number, transcript)
            except BudgetSpent:
                return "no claim", "the budget is spent", tuple(evidence)
            except NoAnswer as error:
                return "undecided", str(error).rstrip("."), tuple(evidence)
            authors = sorted({each.model for each in transcript.answers.values() if each.model})
            if len(authors) > 1:
                reason = f"the model changed in the middle of the test ({' and '.join(authors)})"
                return "undecided", reason, tuple(evidence)
            evidence.append(self._evidence(number, answer, evidence))
            if self.test.claimed_at([each.target is not None for each in evidence]):
                return "claim", "the evidence is enough", tuple(evidence)
        spent = self.budget is not None and len(self.asked) == self.budget < len(self.fingerprints)
        return "no claim", "the budget is spent" if spent else "no fingerprint is left", tuple(evidence)

    def _ask(self, suspect: Suspect, number: int, transcript: Transcript) -> Answer:
        trigger = self.fingerprints.fingerprints[number].trigger

        def asking() -> None:
            if self.budget is not None and transcript.requests >= self.budget:
                raise BudgetSpent
            transcript.asking(number, trigger)

        told = Told(asking, lambda reason: transcript.failed(number, reason), transcript.turned_down)
        answer = suspect.respond(trigger, random.Random(f"{self.seed} {number}").getrandbits(31), told)
        transcript.answered(number, answer)
        return answer

    def _evidence(self, number: int, answer: Answer, before: Sequence[Evidence]) -> Evidence:
        fingerprint = self.fingerprints.fingerprints[number]
        target = matching_target(answer.text, fingerprint)
        matches = [*(each.target is not None for each in before), target is not None]
        return Evidence(
            place=number + 1,
            trigger=fingerprint.trigger,
            targets=fingerprint.targets,
            response=answer.text.lstrip(),
            target=target,
            null=self.test.null[len(before)],
            log_ratio=float(self.test.evidence(matches)[-1]),
            seed=answer.seed,
            details=answer.details,
        )


def matching_target(response: str, fingerprint: Fingerprint) -> str | None:
    """The longest target that a response begins with, leading whitespace stripped (protocol §3)."""
    return max(filter(response.lstrip().startswith, fingerprint.targets), key=len, default=None)
