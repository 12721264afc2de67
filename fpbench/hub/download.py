"""Why something cannot be had from the hub, in one clear line."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fpbench.errors import InputError
from fpbench.hub.lock import Pin, sha256, verify

if TYPE_CHECKING:
    from datasets import Dataset

# The client's HTTP library changed its name between versions; its error is a base of the client's own.
_HTTP_ERROR = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# Downloads by Xet fail with a RuntimeError.
FAILURES: tuple[type[BaseException], ...] = (_HTTP_ERROR, OSError, ValueError, RuntimeError)
SECONDS = 30
"""How long the hub may take to answer a question."""


@dataclass(frozen=True)
class Wanted:
    """A repository of the hub that is asked for.

    Attributes:
        what: what the user calls it, such as ``model 'owner/name'``.
        repository: ``owner/name``.
        kind: of repository.
    """

    what: str
    repository: str
    kind: Literal["model", "dataset"]

    @property
    def page(self) -> str:
        """Its page, where a licence is accepted."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


@contextlib.contextmanager
def asking(wanted: Wanted) -> Iterator[None]:
    """Turn what the hub's client raises into the one error that the user meets.

    Raises:
        InputError: see :func:`refusal`.
    """
    try:
        yield
    except FAILURES as error:
        raise refusal(wanted, error) from None


def check_access(wanted: Wanted) -> None:
    """Ask the hub whether a repository may be read.

    Raises:
        InputError: if it is gated, absent, or the hub cannot be reached.
    """
    with asking(wanted):
        HfApi().auth_check(wanted.repository, repo_type=wanted.kind)


def refusal(wanted: Wanted, error: BaseException) -> InputError:
    """What was expected, what was found and what to do, from the error of the hub's client and what caused it."""
    causes = list(_causes(error))
    response = next((cause.response for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status = response.status_code if response is not None else None

    def met(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if met(OfflineModeIsEnabled):
        return InputError(
            f"{wanted.what} is not here, and the hub may not be asked (offline): run `fpbench fetch PROFILE` while "
            "online, or give a local folder or file."
        )
    if met(GatedRepoError) or (status in (401, 403) and not met(RepositoryNotFoundError)):
        found = "a token that may not read it" if get_token() else "no token"
        return InputError(
            f"{wanted.what} is gated: expected the token of an account that accepted its licence, found {found}; "
            f"accept it at {wanted.page} and set HF_TOKEN."
        )
    if met(RevisionNotFoundError):
        asked = response.url if response is not None else wanted.page
        return InputError(
            f"{wanted.what}: expected a revision that the hub has, found none at {asked}; choose one of those at "
            f"{wanted.page}."
        )
    if met(RepositoryNotFoundError):
        return InputError(
            f"{wanted.what}: expected a repository at {wanted.page}, found none that may be read ({status}); check the "
            "name, and where it is private or gated accept its licence there and set HF_TOKEN."
        )
    reason = next((line for line in str(causes[-1]).splitlines() if line.strip()), type(causes[-1]).__name__)
    return InputError(
        f"{wanted.what} cannot be had from {constants.ENDPOINT} ({reason.strip()}): check the name, the connection and "
        "the disk, and run the same command again, or give a local folder or file."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


# Models of the hub: downloaded at a commit, and held against their pin.


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


# Data sets of the hub, read at one commit.


@dataclass(frozen=True)
class HubSource:
    """A split of a data set of the hub; ``str`` gives the source as a profile writes it."""

    name: str
    config: str | None
    revision: str
    split: str

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"hub:{self.name}{config}@{self.revision}:{self.split}"


def wanted_rows(source: HubSource) -> "Wanted":
    """What messages call a data set."""
    return Wanted(f"data source {str(source)!r}", source.name, "dataset")


def dataset_commit(source: HubSource) -> str:
    """The commit that a source's revision stands for now.

    Raises:
        InputError: if the hub cannot be asked, or has no such data set or revision.
    """
    from huggingface_hub import HfApi

    with asking(wanted_rows(source)):
        sha = HfApi().dataset_info(source.name, revision=source.revision, timeout=SECONDS).sha
    assert sha is not None, "the hub names the commit of every revision"
    return sha


def load_rows(source: HubSource, commit: str) -> "Dataset":
    """Download a split at a commit.

    Raises:
        InputError: if it cannot be had at that commit.
    """
    import datasets

    wanted = wanted_rows(source)
    try:
        builder = datasets.load_dataset_builder(source.name, source.config, revision=commit)
        if commit not in str(builder.base_path):
            raise OSError("datasets fell back on another version that it has kept")
        builder.download_and_prepare()
        return builder.as_dataset(split=source.split)
    except (*FAILURES, datasets.exceptions.DatasetsError) as error:
        check_access(wanted)  # `datasets` loses the hub's own reason
        raise refusal(wanted, error) from None
