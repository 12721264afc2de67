"""An audit: verification and comparison of one suspect, their records, and the report that is written from these."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from fpbench.board.document import Document, Records, as_markdown, as_page, plain
from fpbench.errors import InputError, StorageError
from fpbench.metrics.claims import FLOOR
from fpbench.models.checkpoints import WEIGHTS, base_of_adapter, checkpoint_digest, gguf_file
from fpbench.models.loading import Loading, pick_device
from fpbench.models.meter import Progress, no_progress
from fpbench.models.objects import check_text
from fpbench.ownership import lineage, verification
from fpbench.ownership.audit_report import AUDIT, FIGURE, conclusion, report
from fpbench.ownership.sequential import CARRIED, STEP, tolerated_chance
from fpbench.ownership.verification import Verification
from fpbench.ownership.verify import GivenSet, Models, Question, asked_profile, verify_suspect
from fpbench.records.provenance import code_and_machine
from fpbench.records.store import check_writable, held_back
from fpbench.runs.profile import Profile
from fpbench.runs.sets import Given, named
from fpbench.text import writable

TRANSCRIPT = "transcript.jsonl"
SCHEMA = 1


@dataclass(frozen=True, repr=False)
class Audit:
    """A finished audit."""

    verification: Verification
    conclusion: str  # of both halves, in one paragraph
    records: Records  # that every number in the report is taken from
    document: Document  # the report

    def __repr__(self) -> str:
        return f"Audit of {self.verification.suspect}: {self.conclusion}"


def audit(
    suspect: str,
    fingerprints: Given,
    *,
    base: str | None = None,
    unrelated: Sequence[str] = (),
    level: float = 1e-3,
    budget: int | None = None,
    out: str | os.PathLike[str] = "fpbench-audit",
    profile: str = "micro",
    prompt: str | None = None,
    seed: int | None = None,
) -> Audit:
    """Verify and compare in one report, as ``fpbench audit`` does; write it, its records and its page to ``out``.

    The arguments are those of :func:`fpbench.verify`; ``out`` is a folder that does not exist or is empty.

    Raises:
        InputError: if ``out`` is not empty, or anything asked for is of another type, unknown or malformed.
        CellError: if a model's logits are not finite.
        StorageError: if the disk gives out.
    """
    check_text("suspect", suspect, "micro")
    question = Question(suspect, base, tuple(unrelated), level, budget)
    with named(fingerprints) as name:
        wanted = asked_profile(question, name, profile, prompt, seed)
        return audit_suspect(wanted, question, Loading(pick_device(None)), Path(out))


def audit_suspect(
    profile: Profile,
    question: Question,
    loading: Loading,
    out: Path,
    progress: Progress = no_progress,
    log: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Compare a suspect's weights with the base's, test its answers, and write ``out``.

    Files appear in ``out`` only once everything is finished; they are readable by their owner alone. Until then the
    requests stand in a transcript, from which the same call goes on: the question's, which is copied into ``out``, or,
    if it has none, one beside ``out`` that is moved there.

    Args:
        profile: the one set, the decoding, the prompt and the first seed.
        question: what :func:`~fpbench.ownership.verify.verify_suspect` is asked.
        loading: how models are loaded.
        out: a folder that does not exist or is empty.
        progress: told how far the verification is.
        log: told which host is asked, and with which key.

    Raises:
        InputError: if ``out`` is not empty or cannot be written, or anything asked for is unknown or malformed.
        CellError: if a model's logits are not finite.
        StorageError: if the disk gives out; the transcript stays.
    """
    out = out.resolve()
    _check_out(out, question.transcript)
    transcript = question.transcript or out.with_name(f"{out.name}.transcript.jsonl")
    models = Models.found(question, loading)
    given = GivenSet.load(profile.fingerprints[0], profile.sets, profile.seeds[0])
    reason = _not_compared(question, models)
    comparison = None
    if reason is None and question.base is not None:
        comparison = lineage.compare(
            question.base, str(models.suspect), unrelated=question.unrelated, base=question.base
        )
    verified = verify_suspect(profile, replace(question, transcript=transcript), loading, progress, log)
    with _beside(out) as folder:
        content: dict[str, Any] = {verification.FILE: json.loads(verified.as_json())}
        (folder / verification.FILE).write_text(verified.as_json(), encoding="utf-8")
        (folder / TRANSCRIPT).write_bytes(transcript.read_bytes())
        if comparison is not None and question.base is not None:
            lineage.write(comparison, question.base, question.suspect, str(folder))
            content[lineage.FILE] = json.loads((folder / lineage.FILE).read_bytes())
        facts = {
            "schema": SCHEMA,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdicts": {"answers": verified.verdict, "weights": comparison and comparison.verdict},
            "not_compared": reason,
            "models": _models(question, models, transcript),
            "fingerprints": {
                "name": given.fingerprints.name,
                "sha256": given.digest,
                "sealed": given.dated == "sealed",
                "built_in": given.dated == "built in",
            },
            "seed": profile.seeds[0],
            "precision": loading.precision,
            "rules": {
                "least_chance": FLOOR,
                "weaker": verification.WEAKER,
                "carried": CARRIED,
                "related": lineage.RELATED,
                "unrelated": lineage.UNRELATED,
                "fewest_blocks": lineage.FEWEST_BLOCKS,
            },
            "derived": _derived(verified),
            "files": {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
            "made_by": code_and_machine(),
        }
        records = Records(content | {AUDIT: facts})
        facts["conclusion"] = plain(conclusion(records))
        kept = writable(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        drawn = (folder / FIGURE).read_bytes() if (folder / FIGURE).is_file() else None
        document = report(records, sha256(kept).hexdigest(), drawn)
        (folder / AUDIT).write_bytes(kept)
        (folder / "audit.md").write_text(as_markdown(document), encoding="utf-8")
        (folder / "audit.html").write_text(as_page(document), encoding="utf-8")
        _move(folder, out)
    if question.transcript is None:
        transcript.unlink()
    return Audit(verified, str(facts["conclusion"]), records, document)


def _check_out(out: Path, transcript: Path | None) -> None:
    """Refuse a folder that holds something or cannot be written, and a transcript within it."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not an empty folder: choose another, nothing was written.")
    if transcript is not None and out in transcript.resolve().parents:
        raise InputError(f"--transcript {transcript} is inside --out: choose a place from which it can be resumed.")
    check_writable(out)


def _not_compared(question: Question, models: Models) -> str | None:
    """Return why weights cannot be compared; ``None`` if they can."""
    if models.suspect is None:
        return "the suspect is behind a URL, where nobody but its operator sees them."
    if question.base is None:
        return "no base was given to compare them with."
    names, folders = (question.suspect, *question.null_models), (models.suspect, *models.nulls)
    for name, folder in zip(names, folders, strict=True):
        if base_of_adapter(folder, models.base) is None and gguf_file(folder) is None and not any(folder.glob(WEIGHTS)):
            return (
                f"the weights of {name} are stored in another form than safetensors or GGUF, which alone are compared."
            )
    return None


def _models(question: Question, models: Models, transcript: Path) -> dict[str, Any]:
    """Return name and digest of every model, and what the suspect's answers in a transcript call their author."""
    named = zip(question.null_models, models.nulls, strict=True)
    others: list[Any] = [{"name": name, "sha256": checkpoint_digest(folder)} for name, folder in named]
    events = map(json.loads, transcript.read_bytes().splitlines())
    authors = {event["model"] for event in events if event["event"] == "answer" and event["model"]}
    return {
        "suspect": {"name": question.suspect, "sha256": models.digest},
        "base": None if question.base is None else others.pop(0),
        "unrelated": others,
        "called_itself": sorted(authors),
    }


def _derived(verified: Verification) -> dict[str, Any]:
    """Return the figures that a report shows and that no other record holds, computed from the verification."""
    matches = [each.target is not None for each in verified.evidence]
    planned = verified.size - verified.uninformative
    if verified.budget is not None:
        planned = min(planned, verified.budget)
    claimed = verified.verdict in ("claim", "match")
    return {
        "asked": len(matches),
        "planned": planned,
        "one_in": int(1 / verified.level * (1 + 1e-9)),
        "ratio_needed": verification.ratio(verified.bound),
        "ratios": verified.ratios,
        "tolerated_chance": tolerated_chance(matches, planned, verified.level) if claimed else None,
        "step": STEP,
    }


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Make a folder beside ``out`` for unfinished files, removed afterwards; only its owner can read it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
            yield Path(name)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror or error}): the transcript stays.") from None


def _move(folder: Path, out: Path) -> None:
    """Move every file to its place; a signal waits until all are there."""
    with held_back():
        out.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.iterdir()):
            path.chmod(0o600)
            path.replace(out / path.name)
