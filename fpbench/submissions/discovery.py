"""Submissions by name, for the registries of methods and of adversaries."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fpbench.registry import ADVERSARIES, METHODS
from fpbench.submissions.folder import SUBMISSIONS, Submission, accepted
from fpbench.submissions.manifest import FILE, NAME


@dataclass(frozen=True)
class Discovery:
    """Finds the submissions of one kind in a folder, which is read again for every name."""

    folder: Path = SUBMISSIONS  # relative to the working folder at the time of asking, unless it is absolute
    attacks: bool = False  # adversaries in place of methods

    def names(self) -> list[str]:
        """Return the name of every submission of this kind, whatever is in it."""
        found = (path.parent for path in self.folder.glob(f"*/{FILE}") if NAME.fullmatch(path.parent.name))
        return sorted(folder.name for folder in found if Submission(folder).attacks == self.attacks)

    def find(self, name: str) -> type | None:
        """Return the method or adversary of a submission; ``None`` if there is none of this name.

        Raises:
            InputError: if there is something to find about it (`fpbench submit check` lists all of it).
        """
        if name not in self.names():
            return None
        folder = (self.folder / name).absolute()
        files = ((path, path.lstat()) for path in Submission(folder).entries)
        return _class(folder, tuple((path, state.st_size, state.st_mtime_ns) for path, state in files))


@cache
def _class(folder: Path, state: object) -> type:
    """Return one class for one state of a submission, which is looked at once."""
    submission = accepted(Submission(folder))
    if submission.attacks:
        from fpbench.submissions.adversary import adversary_of  # torch, which listing names does not need

        return adversary_of(submission)
    from fpbench.submissions.method import method_of

    return method_of(submission)


def register_submissions(folder: Path = SUBMISSIONS) -> None:
    """Have the registries find the methods and the adversaries in a folder of submissions."""
    METHODS.add_finder(Discovery(folder))
    ADVERSARIES.add_finder(Discovery(folder, attacks=True))


@contextmanager
def adversaries_of(folder: Path) -> Iterator[None]:
    """Have the registry find the adversaries in a folder of submissions, too, for as long as the block lasts."""
    before = list(ADVERSARIES.finders)
    ADVERSARIES.add_finder(Discovery(folder, attacks=True))
    try:
        yield
    finally:
        ADVERSARIES.finders[:] = before
