"""Models of the hub: downloaded at a commit, and held against their pin."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from fpbench.errors import InputError
from fpbench.hub.lock import Pin, sha256, verify
from fpbench.hub.refusals import SECONDS, Wanted, asking

# A checkpoint is the top of a repository. Below are other formats of the same weights; so are Mistral's own, beside it.
UNWANTED = ("*/*", "consolidated*")


def wanted_model(repository: str) -> Wanted:
    """What messages call a model."""
    return Wanted(f"model {repository!r}", repository, "model")


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> tuple[Path, Pin]:
    """Download a checkpoint at the commit that its revision stands for now.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; ``None`` is the default branch.
        patterns: of the names of files that are wanted.

    Returns:
        The folder, and what is in it.

    Raises:
        InputError: if it cannot be had.
    """
    with asking(wanted_model(repository)):
        info = HfApi().model_info(repository, revision=revision, timeout=SECONDS)
    names = [file.rfilename for file in info.siblings or () if _matches(file.rfilename, patterns)]
    if not names or info.sha is None:
        raise InputError(f"model {repository!r}: expected a checkpoint on the hub, found none of its files; check it.")
    folder = download(repository, info.sha, names)
    return folder, Pin(commit=info.sha, files={name: sha256(folder / name) for name in sorted(names)})


def pinned(repository: str, pin: Pin) -> Path:
    """The folder of a checkpoint that was fetched; what is missing of it is downloaded at the same commit.

    Raises:
        InputError: if a file is not the one that was fetched, or is missing and cannot be had.
    """
    folder = download(repository, pin.commit, pin.files)
    verify(f"model {repository!r}", folder, pin)
    return folder


def download(repository: str, commit: str, names: Iterable[str]) -> Path:
    """Have files of one commit in the hub's cache. Those that are there are not asked for.

    One file after another in this thread, so that an interrupt ends it at once; files that are finished stay.

    Args:
        repository: ``owner/name``.
        commit: its full hash.
        names: of files at the top of the repository, at least one.

    Returns:
        The folder that they are in.

    Raises:
        InputError: if one cannot be had.
    """
    with asking(wanted_model(repository)):
        paths = [hf_hub_download(repository, name, revision=commit) for name in names]
    return Path(paths[0]).parent


def snapshot(repository: str, revision: str | None, patterns: Sequence[str], *, cached: bool = False) -> Path:
    """The folder of a checkpoint that nothing pins: as the hub has it now, or, if the hub is out of reach, as it was.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; ``None`` is the default branch.
        patterns: of the names of files that are wanted.
        cached: look into the hub's cache only.

    Raises:
        InputError: if it cannot be had.
    """
    with asking(wanted_model(repository)):
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(UNWANTED),
                local_files_only=cached,
            )
        )


def commit_of(folder: Path) -> str | None:
    """The commit of a checkpoint folder in the hub's cache; ``None`` for a folder of the user's."""
    return folder.name if folder.parent.name == "snapshots" else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, each) for each in patterns) and not any(fnmatch(name, each) for each in UNWANTED)
