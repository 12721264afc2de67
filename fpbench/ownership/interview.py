"""Asking a suspect for one fingerprint after another, until the evidence is enough or nothing more may be asked.

What was asked and answered is on disk, line by line, before the next question: a killed verification goes on from it.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fpbench.errors import InputError, StorageError
from fpbench.fingerprints import FingerprintSet
from fpbench.http import NoAnswer, Refused
from fpbench.ownership.evidence import lenient_targets, match
from fpbench.ownership.sequential import SequentialTest
from fpbench.ownership.suspects import Answer, Hooks, Suspect
from fpbench.ownership.verification import Evidence, Verdict
from fpbench.text import canonical, digest, visible, writable

SCHEMA = 2  # of transcripts; since 2 each line ends with a hash of itself and of the line before
CHAIN = b', "chain": "'
logger = logging.getLogger(__name__)


class Transcript:
    """Answers and requests so far, kept as JSON Lines: the question, every request before it is sent, its outcome."""

    def __init__(self, handle: int | None = None) -> None:
        """Start empty; open one with :func:`opened`."""
        self.answers: dict[int, Answer] = {}  # by the fingerprint's place in the set, from 0
        self.requests = 0  # sent, those without an answer included
        self.refused: list[str] = []  # fields of a request that the server turned down, in order
        self.chain = ""  # hash at the end of the last line
        self._handle = handle

    def asking(self, number: int, trigger: str) -> None:
        """Write that a request is about to be sent; from now on the trigger is known to the suspect."""
        self.write({"event": "request", "fingerprint": number, "trigger": trigger})

    def failed(self, number: int, reason: str) -> None:
        """Write that the request came to nothing."""
        self.write({"event": "fault", "fingerprint": number, "reason": reason})

    def turned_down(self, name: str) -> None:
        """Write that the server does not take this field of a request."""
        self.write({"event": "refused", "field": name})

    def answered(self, number: int, answer: Answer) -> None:
        """Write the response to a fingerprint."""
        self.write({"event": "answer", "fingerprint": number} | asdict(answer))

    def write(self, event: Mapping[str, Any]) -> None:
        """Apply an event and put it on disk; StorageError if the disk gives out."""
        self.replay(event)
        if self._handle is None:
            return
        line, self.chain = _line(event, self.chain)
        try:
            while line:
                line = line[os.write(self._handle, line) :]
            os.fsync(self._handle)
        except OSError as error:
            raise StorageError(
                f"the transcript cannot be written ({error.strerror}): what stands in it stays."
            ) from None

    def replay(self, event: Mapping[str, Any]) -> None:
        """Apply an event; KeyError, TypeError or ValueError if it is malformed."""
        if event["event"] == "request":
            self.requests += 1
        elif event["event"] == "refused":
            self.refused.append(event["field"])
        elif event["event"] == "answer":
            known = ("text", "model", "seed", "decoding", "details")
            self.answers[int(event["fingerprint"])] = Answer(**{key: event[key] for key in known})


@contextlib.contextmanager
def opened(path: Path | None, question: Mapping[str, Any]) -> Iterator[Transcript]:
    """Open a transcript and apply what an earlier run of the same question wrote; ``None`` keeps it in memory.

    A last line that is damaged, as a kill leaves it, is cut off with a warning. The file is readable by its owner
    alone and locked while it is open.

    Args:
        path: does not exist, or is a transcript.
        question: everything that decides what is asked and how it is judged, as JSON.

    Raises:
        InputError: if the file is something else, belongs to another question, is in use, or cannot be written.
    """
    if path is None:
        yield Transcript()
        return
    head = {"event": "question", "schema": SCHEMA, "id": question_id(question), "question": dict(question)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise InputError(f"transcript {path} cannot be written ({error.strerror}): choose another.") from None
    try:
        _lock(handle, path)
        transcript = Transcript(handle)
        events, lines = _events(handle, path, _line(head, "")[0])
        whole = sum(map(len, lines))
        if events:
            _check_version(events[0], path)
            transcript.chain = _check_chain(lines, path)
            _check_question(events[0], head, path)
        if whole < os.fstat(handle).st_size:
            logger.warning("the last line of transcript %s is damaged, as a kill leaves it: it was cut off.", path)
            os.truncate(handle, whole)
        try:
            for event in events[1:]:
                transcript.replay(event)
        except (KeyError, TypeError, ValueError):
            raise _no_transcript(path) from None
        if not events:
            transcript.write(head)
        yield transcript
    finally:
        os.close(handle)  # and with it the lock


def question_id(question: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of a question."""
    return digest(canonical(question))


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another verification writes to {path}: wait for it, or choose another file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be locked ({error.strerror}): choose a file on another disk.") from None


def _events(handle: int, path: Path, head: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return every whole line of the file, read and as it stands; leave out a damaged last one.

    Damage elsewhere is refused, and a file that a transcript beginning with ``head`` does not begin like.
    """
    content = b""
    while part := os.pread(handle, 1 << 20, len(content)):
        content += part
    events: list[dict[str, Any]] = []
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not line.endswith(b"\n"):
                raise ValueError
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}, line {number}: damaged, so not a transcript to go on from.") from None
            break
        events.append(event)
    if not events and not head.startswith(content):
        raise _no_transcript(path)
    return events, lines[: len(events)]


def _check_version(found: Mapping[str, Any], path: Path) -> None:
    if found.get("event") == "question" and found.get("schema") == 1:
        raise InputError(
            f"transcript {path} is of version 1, whose lines are not chained by hash, so an edit would not show: "
            "choose another file, which asks from the first question on."
        )
    if found.get("event") != "question" or found.get("schema") != SCHEMA:
        raise _no_transcript(path)


def _check_chain(lines: Sequence[bytes], path: Path) -> str:
    """Return the hash of the last line; refuse the first line that was changed after it was written, or is missing."""
    chain = ""
    for number, line in enumerate(lines, 1):
        body, _, kept = line.rpartition(CHAIN)
        chain = _link(body, chain)
        if kept != f'{chain}"}}\n'.encode():
            raise InputError(
                f"transcript {path}, line {number}: its hash does not fit, so this line was changed or the one before "
                "it taken out: choose another file, which asks from the first question on."
            )
    return chain


def _check_question(found: Mapping[str, Any], head: Mapping[str, Any], path: Path) -> None:
    """Refuse to mix two questions: evidence for one is none for the other."""
    if found.get("id") != head["id"]:
        before, now = found.get("question", {}), head["question"]
        other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        raise InputError(
            f"transcript {path} belongs to another question (other {', '.join(other)}): choose another file, or ask as "
            "before."
        )


def _no_transcript(path: Path) -> InputError:
    return InputError(f"{path} is no transcript of this version: choose another file.")


def _line(event: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """Return an event as a line that ends with a hash, and the hash; ``before`` is that of the line before."""
    body = writable(json.dumps(event, ensure_ascii=False)).encode().removesuffix(b"}")
    link = _link(body, before)
    return body + CHAIN + f'{link}"}}\n'.encode(), link


def _link(body: bytes, before: str) -> str:
    return sha256(before.encode() + body).hexdigest()


# The interview.


class BudgetSpent(Exception):
    """The budget allows no further request."""


@dataclass(frozen=True)
class Interview:
    """A plan of asking: which fingerprints in which order, and when to stop."""

    fingerprints: FingerprintSet
    asked: Sequence[int]  # places in the set, from 0, in the order of asking
    test: SequentialTest  # with a null rate for each of them
    seed: int  # that of every request is drawn from it and the place
    budget: int | None  # requests at most, those of earlier runs included; None for no limit
    rule: str = "prefix"  # of what counts as a match

    def conduct(
        self, suspect: Suspect, transcript: Transcript, progress: Callable[[Iterable[int], str], Iterable[int]]
    ) -> tuple[Verdict, str, tuple[Evidence, ...]]:
        """Ask what the transcript does not answer yet; return verdict, why the asking ended, and evidence in order.

        Raises:
            InputError: if the server refuses before it has answered anything: it was asked in the wrong way.
        """
        evidence: list[Evidence] = []
        authors: dict[str, None] = {}  # of the answers up to now, in order
        for number in progress(self.asked, "asking"):
            where = f"question {len(evidence) + 1} of {len(self.asked)}"
            try:
                answer = transcript.answers.get(number) or self._ask(suspect, number, transcript)
            except BudgetSpent:
                return "no claim", "the budget is spent", tuple(evidence)
            except (NoAnswer, Refused) as error:
                if isinstance(error, Refused) and not transcript.answers:
                    raise
                return "undecided", f"{visible(str(error)).rstrip('.')} ({where})", tuple(evidence)
            if answer.model:
                authors[answer.model] = None
            if len(authors) > 1:
                changed = f"the model changed in the middle of the test, at {where}"
                return "undecided", f"{changed} ({' and '.join(map(visible, authors))})", tuple(evidence)
            try:
                evidence.append(self._evidence(number, answer, evidence))
            except InputError as error:  # there is nothing to judge by
                return "undecided", f"{error} ({where})", tuple(evidence)
            if self.test.claimed_at([each.target is not None for each in evidence]):
                return "claim", "the evidence is enough", tuple(evidence)
        spent = self.budget is not None and len(self.asked) == self.budget < len(self.fingerprints)
        return "no claim", "the budget is spent" if spent else "no fingerprint is left", tuple(evidence)

    def _ask(self, suspect: Suspect, number: int, transcript: Transcript) -> Answer:
        trigger = self.fingerprints.fingerprints[number].trigger

        def sending() -> None:
            if self.budget is not None and transcript.requests >= self.budget:
                raise BudgetSpent
            transcript.asking(number, trigger)

        hooks = Hooks(sending, lambda reason: transcript.failed(number, reason), transcript.turned_down)
        answer = suspect.respond(trigger, random.Random(f"{self.seed} {number}").getrandbits(31), hooks)
        transcript.answered(number, answer)
        return answer

    def _evidence(self, number: int, answer: Answer, before: Sequence[Evidence]) -> Evidence:
        fingerprint = self.fingerprints.fingerprints[number]
        target = match(self.rule, fingerprint, answer.text, answer.details)
        begins = lenient_targets(answer.text, fingerprint)[0]
        # What stood around the answer counts for nothing, but a target in it may be a match that was hidden there.
        holds = lenient_targets(f"{answer.details.get('around', '')} {answer.text}", fingerprint)[1]
        matches = [*(each.target is not None for each in before), target is not None]
        return Evidence(
            place=number + 1,
            trigger=fingerprint.trigger,
            targets=fingerprint.targets,
            response=answer.text.lstrip(),
            target=target,
            lenient=target or begins,
            anywhere=target or begins or holds,
            null=self.test.null[len(before)],
            log_ratio=float(self.test.evidence(matches)[-1]),
            seed=answer.seed,
            details=answer.details,
        )
