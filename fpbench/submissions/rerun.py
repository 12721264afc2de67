"""The records of a submission: put beside it by its author, re-run in part by the keeper of the board."""

import random
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fpbench.board.checks import Comparison, compare, compare_prices, rate_of
from fpbench.board.groups import ATTACKED, Group, claimed_attacks, claimed_groups, group_records, names
from fpbench.board.rows import claimed_row
from fpbench.errors import InputError, StorageError
from fpbench.models.loading import Loading
from fpbench.records.cell import BASE, ORIGIN, Cell
from fpbench.records.store import Store, read_records
from fpbench.runs.api import measure
from fpbench.runs.engine import Serial, Watch
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import Profile
from fpbench.submissions.folder import RECORDS, SUBMISSIONS, Submission, accepted, version_of


def runnable(submission: Submission, submissions: Path = SUBMISSIONS) -> Submission:
    """Return a submission if runs find it by its name.

    Raises:
        InputError: if it lies elsewhere than in ``submissions``, or there is something to find about its files.
    """
    if submission.folder != (submissions / submission.name).absolute():
        raise InputError(
            f"submission {submission.folder}: runs find it by name in {submissions}/ of the working folder; go to the "
            "folder above it, or move it."
        )
    return accepted(submission)


def planned(submission: Submission, profile: Profile) -> list[Cell]:
    """Return the cells of a profile that a submission is measured in: of an adversary FSR and price alone."""
    return [cell for cell in plan(profile) if not submission.attacks or cell.metric in ATTACKED]


def concerns(submission: Submission, cell: Cell) -> bool:
    """Return whether a cell is of the submission itself, and not of what it is compared with."""
    return names(cell.condition, submission.name) if submission.attacks else cell.method == submission.name


def hand_in(submission: Submission, cells: Sequence[Cell], store: Store) -> Path:
    """Put the records of a finished run's cells beside the submission, in place of earlier ones.

    Raises:
        StorageError: if the disk gives out; the earlier records stay then.
    """
    target = submission.folder / RECORDS
    try:
        with tempfile.TemporaryDirectory(dir=submission.folder.parent, prefix=f".{submission.name}.") as scratch:
            fresh = Path(scratch) / RECORDS
            for cell in cells:
                for source in (store.record_path(cell), store.record_path(cell).with_suffix(".jsonl")):
                    if source.is_file():
                        copy = fresh / source.relative_to(store.records)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source, copy)
            if target.exists():
                target.replace(Path(scratch) / "earlier")
            fresh.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror or error}): run again.") from None
    return target


@dataclass(frozen=True)
class Rerun:
    """The outcome of measuring again."""

    compared: list[Comparison]  # every cell that both sides measured (compare)
    draw: int  # the seed of the sample, of contexts and of near triggers
    failed: list[str]  # cells that could not be measured here, with the reason

    @property
    def outside(self) -> list[Comparison]:
        """Comparisons that differ by more than is allowed."""
        return [each for each in self.compared if not each.within]


def claimed(submission: Submission) -> list[Group]:
    """Return the measurements that its author handed in.

    Raises:
        InputError: if there is none, a figure is impossible, records of another method are among them, or they were
            measured with other code than what lies beside them.
    """
    folder, read = submission.folder / RECORDS, claimed_attacks if submission.attacks else claimed_groups
    groups = read(folder, submission.name) if folder.is_dir() else []
    own = [each for group in groups for each in group.measurements() if concerns(submission, each.cell)]
    if not own:
        raise InputError(
            f"{folder} holds no records of {submission.name!r}: its author runs `fpbench submit run` first."
        )
    for group in groups:
        claimed_row(group, None)
    # A cell that failed before its method was known has no identity.
    identities = [each.record.identity for each in own if isinstance(each.record.identity, dict)]
    versions = {_version(submission, each) for each in identities}
    version = version_of(submission)
    if other := sorted(versions - {version}):
        raise InputError(
            f"{folder} was measured with version {other[0]} of {submission.name!r}, the code there is {version}: its "
            "author runs `fpbench submit run` again."
        )
    return groups


def _version(submission: Submission, identity: Mapping[str, Any]) -> str:
    """Return the version of a submission that the identity of one of its cells names."""
    found = [identity]
    if submission.attacks:
        listed = identity.get("adversaries")
        every = listed if isinstance(listed, list) else []
        found = [each for each in every if isinstance(each, dict) and each.get("name") == submission.name]
    return str(found[0].get("version")) if found else "unknown"


def sample(groups: Sequence[Group], name: str, count: int | None, draw: int) -> list[Cell]:
    """Draw the cells to re-run: for every model, set and seed the origin, and others until there are ``count``.

    Near and accidental triggers are among them wherever they were handed in.

    Args:
        groups: what was handed in.
        name: of the method.
        count: FSR cells in all; ``None`` takes every cell of the method.
        draw: seed.
    """
    cells = [each.cell for group in groups if group.key[2] == name for each in group.measurements()]
    if count is None:
        return cells
    ours = [cell for cell in cells if rate_of(cell.metric) and cell.metric != "fsr"]
    rates = [cell for cell in cells if cell.metric == "fsr"]
    always = [cell for cell in rates if cell.condition == ORIGIN]
    others = sorted((cell for cell in rates if cell.condition != ORIGIN), key=str)
    more = random.Random(draw).sample(others, max(0, min(count - len(always), len(others))))
    return [*always, *more, *ours]


def sample_attacks(groups: Sequence[Group], count: int | None, draw: int) -> list[Cell]:
    """Draw attacked cells to re-run; with each, what was handed in of the same row and of its base, and of its origin.

    Args:
        groups: what was handed in of an adversary.
        count: FSR cells of fingerprinted rows under it; ``None`` takes every cell.
        draw: seed.
    """
    cells = [each.cell for group in groups for each in group.measurements()]
    if count is None:
        return cells
    attacked = sorted(
        (cell for cell in cells if cell.metric == "fsr" and cell.condition != ORIGIN and cell.method != BASE), key=str
    )
    drawn = random.Random(draw).sample(attacked, min(count, len(attacked)))
    beside = {
        replace(cell, method=method, condition=condition, metric=metric)
        for cell in drawn
        for method in (cell.method, BASE)
        for condition in (cell.condition, ORIGIN)
        for metric in ATTACKED
    }
    return [cell for cell in cells if cell in beside]


def rerun(
    submission: Submission,
    profile: Profile,
    store: Store,
    loading: Loading,
    watch: Watch,
    count: int | None,
) -> Rerun:
    """Measure a sample of what was handed in once more, in isolation, and compare.

    Args:
        submission: its records are beside it.
        profile: that the records were measured with; of a method its seed of draws is replaced by a new one.
        store: of our own records, which a leaderboard reads.
        loading: how models are loaded.
        watch: is told how far it is.
        count: FSR cells to re-run; ``None`` re-runs everything.

    Raises:
        InputError: for impossible records, or such that the profile does not plan.
        StorageError: if the disk gives out.
    """
    groups, draw = claimed(submission), secrets.randbits(31)
    attacks, name = submission.attacks, submission.name
    wanted = sample_attacks(groups, count, draw) if attacks else sample(groups, name, count, draw)
    conditions, methods = (
        dict.fromkeys(each) for each in zip(*((cell.condition, cell.method) for cell in wanted), strict=True)
    )
    changes: dict[str, Any] = {
        "conditions": tuple(conditions),
        "methods": tuple(each for each in methods if each != BASE),
    }
    # What an adversary draws is part of it; its sets and items are not drawn.
    profile = profile.model_copy(update=changes if attacks else changes | {"draw": draw})
    known = {cell.path: cell for cell in planned(submission, profile)}
    if unknown := sorted(cell.path for cell in wanted if cell.path not in known):
        raise InputError(
            f"{unknown[0]} was handed in, which profile {profile.name!r} does not plan: name the profile, models and "
            "sets that it was measured with."
        )
    paths = {cell.path for cell in wanted}
    cells = [cell for path, cell in known.items() if path in paths or (count is None and cell.method == BASE)]
    measure(Job.of(profile, loading, store.folder), cells, watch, Serial())
    own = group_records(read_records(store.records), store.records)
    both = [(own[group.key], group) for group in groups if group.key in own and (attacks or group.key[2] == name)]
    compared = [each for ours, theirs in both for each in compare(ours, theirs)]
    if attacks:
        compared += [each for ours, theirs in both for each in compare_prices(ours, theirs)]
    failures = [each for key, group in own.items() if attacks or key[2] == name for each in group.failures()]
    return Rerun(compared, draw, [f"{each.cell}: {each.reason}" for each in failures if each.cell.path in paths])
