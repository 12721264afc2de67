"""Resuming a run: which cells are left, without models or torch; and which records other code has measured."""

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from fpbench.data import parse
from fpbench.hub.lock import cache
from fpbench.models.checkpoints import base_of_adapter
from fpbench.records.cell import Cell
from fpbench.records.provenance import source, source_of
from fpbench.records.record import Record
from fpbench.records.store import read_record, write_record
from fpbench.registry import METHODS, finders
from fpbench.runs.plan import Job
from fpbench.runs.profile import Profile
from fpbench.runs.sets import Sets
from fpbench.text import canonical, short_digest

PACKAGE = Path(__file__).parent.parent
MADE = ("locks", "statistics")  # in fpbench's cache, by any verb: they decide no record


class Resume:
    """The ids of a job's records, remembered from the last time that they were computed.

    They are functions of profile, code, model, data and sets; as long as none of these was touched (by size and time
    of every file), they need not be computed again, which would take torch and the models' files.
    """

    def __init__(self, job: Job, sets: Sets) -> None:
        """Look at the files of a job and its written sets; read none but what was remembered."""
        profile = job.profile
        files = [path for source in profile.data.values() if isinstance(path := parse(source), Path)]
        models = [*job.folders.values(), *([job.handed_in] if job.handed_in else [])]
        given = next(iter(job.folders.values()), None) if job.handed_in else None
        bases = [base for folder in models if (base := base_of_adapter(folder, given))]
        fetched = sorted(path for path in cache().glob("*") if path.name not in MADE)
        folders = [PACKAGE, *dict.fromkeys(finder.folder for _, finder in finders()), *fetched, *models, *bases]
        groups = ("fpbench.methods", "fpbench.modifications", "fpbench.adversaries")
        installed = [each for group in groups for each in entry_points(group=group)]
        plugins = [(each.value, version(each.dist.name)) for each in installed if each.dist]
        state: dict[str, Any] = {
            "profile": profile.model_dump(mode="json"),
            "precision": job.loading.precision,
            "folders": [str(folder) for folder in folders],
            "plugins": sorted(plugins),
            "sets": sorted((name, seed, each.digest) for (name, seed), each in sets.items()),
            "files": [stamp(path) for path in sorted({*files, *below(folders)})],
        }
        self.path = job.out / "plans" / f"{short_digest(canonical(state))}.json"
        names = (read_record(self.path) or {}).get("names")
        self.names: dict[str, str] = names if isinstance(names, dict) else {}

    def pending(self, cells: Sequence[Cell], records: Iterable[Record]) -> list[Cell]:
        """Return the cells of which no finished record is known among ``records``."""
        finished = {(record.cell, record.id) for record in records if record.status == "done"}
        return [cell for cell in cells if (cell, self.names.get(cell.path)) not in finished]

    def finished(self, cells: Sequence[Cell], records: Iterable[Record]) -> list[Cell]:
        """Return the cells that have a finished record, of the id that is known or, where none is known, of any."""
        ids = {record.cell: record.id for record in records if record.status == "done"}
        return [cell for cell in cells if cell in ids and self.names.get(cell.path, ids[cell]) == ids[cell]]

    def remember(self, names: dict[str, str]) -> None:
        """Write the ids of records by path, besides those that are known already."""
        self.names |= names
        write_record(self.path, {"names": self.names})


def below(folders: Iterable[Path]) -> list[Path]:
    """Return every file below some folders except compiled code; a file stands for itself."""
    found = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


def stamp(path: Path) -> tuple[str, int, int]:
    """Return name, size and time of a file; −1 for one that is missing."""
    try:
        found = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), found.st_size, found.st_mtime_ns


def other_code(records: Iterable[Record], profile: Profile) -> list[str]:
    """Return a sentence for what was measured by other code than this: fpbench as a whole, then each method."""
    remarks, here = [], source()  # code does not name a record, a method's version does
    found = [record for record in records if record.status == "done"]
    if others := sum(record.provenance.get("source") != here for record in found):
        remarks.append(f"{others} of {len(found)} records were measured by other code of fpbench than this ({here}).")
    changed: Counter[str] = Counter()
    for record in found:
        if record.cell.method in profile.methods:
            name = profile.method_of(record.cell.method)[0]
            changed[name] += record.provenance.get("method_source") != source_of(METHODS.get(name))
    for name, count in changed.items():
        if count:
            version = METHODS.get(name).version
            remarks.append(
                f"{count} records of method {name!r} were made by another file than the present one, which is still "
                f"of version {version!r}: raise its version if what it does has changed, and run again."
            )
    return remarks
