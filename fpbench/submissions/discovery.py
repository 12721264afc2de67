"""Methods of submissions by name, for the registry."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fpbench.registry import METHODS
from fpbench.submissions.folder import SUBMISSIONS, Submission, accepted
from fpbench.submissions.manifest import FILE, NAME


@dataclass(frozen=True)
class Discovery:
    """Finds the submissions in a folder, which is read again for every name."""

    folder: Path = SUBMISSIONS  # relative to the working folder at the time of asking, unless it is absolute

    def names(self) -> list[str]:
        """Return the name of every submission, whatever is in it."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{FILE}") if NAME.fullmatch(path.parent.name))

    def find(self, name: str) -> type | None:
        """Return the method of a submission; ``None`` if there is none of this name.

        Raises:
            InputError: if there is something to find about it (`fpbench submit check` lists all of it).
        """
        if name not in self.names():
            return None
        folder = (self.folder / name).absolute()
        files = ((path, path.lstat()) for path in Submission(folder).entries)
        return _method(folder, tuple((path, state.st_size, state.st_mtime_ns) for path, state in files))


@cache
def _method(folder: Path, state: object) -> type:
    """Return one class for one state of a submission, which is looked at once."""
    from fpbench.submissions.method import method_of  # torch, which listing names does not need

    return method_of(accepted(Submission(folder)))


def register_submissions(folder: Path = SUBMISSIONS) -> None:
    """Have the registry find the methods in a folder of submissions."""
    METHODS.add_finder(Discovery(folder))
