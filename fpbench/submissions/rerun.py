"""The records of a submission: put beside it by its author, re-run in part by the keeper of the board."""

import random
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpbench.board.checks import Comparison, compare, rate_of
from fpbench.board.groups import Group, claimed_groups, group_records
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


def hand_in(submission: Submission, profile: Profile, store: Store) -> Path:
    """Put the records of a finished run beside the submission: the method's and the base's, in place of earlier ones.

    Raises:
        StorageError: if the disk gives out; the earlier records stay then.
    """
    target = submission.folder / RECORDS
    try:
        with tempfile.TemporaryDirectory(dir=submission.folder.parent, prefix=f".{submission.name}.") as scratch:
            fresh = Path(scratch) / RECORDS
            for cell in plan(profile):
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
    folder = submission.folder / RECORDS
    groups = claimed_groups(folder, submission.name) if folder.is_dir() else []
    if not any(group.key[2] == submission.name for group in groups):
        raise InputError(
            f"{folder} holds no records of {submission.name!r}: its author runs `fpbench submit run` first."
        )
    for group in groups:
        claimed_row(group, None)
    own = (each for group in groups if group.key[2] == submission.name for each in group.measurements())
    # A cell that failed before its method was known has no identity.
    versions = {str(each.record.identity.get("version")) for each in own if isinstance(each.record.identity, dict)}
    version = version_of(submission)
    if other := sorted(versions - {version}):
        raise InputError(
            f"{folder} was measured with version {other[0]} of {submission.name!r}, the code there is {version}: its "
            "author runs `fpbench submit run` again."
        )
    return groups


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
        profile: that the records were measured with; its seed of draws is replaced by a new one.
        store: of our own records, which a leaderboard reads.
        loading: how models are loaded.
        watch: is told how far it is.
        count: FSR cells to re-run; ``None`` re-runs everything.

    Raises:
        InputError: for impossible records, or such that the profile does not plan.
        StorageError: if the disk gives out.
    """
    groups, draw = claimed(submission), secrets.randbits(31)
    wanted = sample(groups, submission.name, count, draw)
    conditions = dict.fromkeys(cell.condition for cell in wanted)
    profile = profile.model_copy(update={"methods": (submission.name,), "conditions": tuple(conditions), "draw": draw})
    planned = {cell.path: cell for cell in plan(profile)}
    if unknown := sorted(cell.path for cell in wanted if cell.path not in planned):
        raise InputError(
            f"{unknown[0]} was handed in, which profile {profile.name!r} does not plan: name the profile, models and "
            "sets that it was measured with."
        )
    paths = {cell.path for cell in wanted}
    cells = [cell for path, cell in planned.items() if path in paths or (count is None and cell.method == BASE)]
    measure(Job.of(profile, loading, store.folder), cells, watch, Serial())
    own = group_records(read_records(store.records), store.records)
    both = [group for group in groups if group.key in own and group.key[2] == submission.name]
    compared = [each for group in both for each in compare(own[group.key], group)]
    failures = [each for key, group in own.items() if key[2] == submission.name for each in group.failures()]
    return Rerun(compared, draw, [f"{each.cell}: {each.reason}" for each in failures if each.cell.path in paths])
