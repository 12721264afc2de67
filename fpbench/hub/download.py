"""Checkpoints and data sets of the Hugging Face hub at one commit; what it refuses is told in one clear line."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_download, snapshot_download

from fpbench.errors import InputError
from fpbench.hub.lock import Pin, sha256, verify

if TYPE_CHECKING:
    from datasets import Dataset

# The client's HTTP library changed its name between versions; its error is a base of the client's own.
_HTTP_ERROR = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# Downloads by Xet fail with a RuntimeError.
FAILURES: tuple[type[BaseException], ...] = (_HTTP_ERROR, OSError, ValueError, RuntimeError)
SECONDS = 30  # that the hub may take to answer a question
# A checkpoint is the top of a repository. Below are other formats of the same weights; so are Mistral's own, beside it.
UNWANTED = ["*/*", "consolidated*"]
DATA_FILES = (".gz", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Wanted:
    """A repository ``owner/name`` of the hub, and what messages call it, such as ``model 'owner/name'``."""

    what: str
    repository: str
    kind: Literal["model", "dataset"]

    @property
    def page(self) -> str:
        """Return the URL of its page, where a licence is accepted."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


def wanted_model(repository: str) -> Wanted:
    """Describe a model."""
    return Wanted(f"model {repository!r}", repository, "model")


@contextlib.contextmanager
def asking(wanted: Wanted) -> Iterator[None]:
    """Turn what the hub's client raises into the InputError of :func:`refusal`."""
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
    """Return an error that says what was expected, what was found and what to do, from one of the hub's client."""
    causes = list(_causes(error))
    response = next((cause.response for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    status = response.status_code if response is not None else None
    met = {kind for cause in causes for kind in type(cause).__mro__}
    if errors.OfflineModeIsEnabled in met:
        return InputError(
            f"{wanted.what} is not here, and the hub may not be asked (offline): run `fpbench fetch PROFILE` while "
            "online, or give a local folder or file."
        )
    if errors.GatedRepoError in met or (status in (401, 403) and errors.RepositoryNotFoundError not in met):
        found = "a token that may not read it" if get_token() else "no token"
        return InputError(
            f"{wanted.what} is gated: expected the token of an account that accepted its licence, found {found}; "
            f"accept it at {wanted.page} and set HF_TOKEN."
        )
    if errors.RevisionNotFoundError in met:
        asked = response.url if response is not None else wanted.page
        return InputError(
            f"{wanted.what}: expected a revision that the hub has, found none at {asked}; choose one of those at "
            f"{wanted.page}."
        )
    if errors.RepositoryNotFoundError in met:
        return InputError(
            f"{wanted.what}: expected a repository at {wanted.page}, found none that may be read ({status}); check the "
            "name, and where it is private or gated accept its licence there and set HF_TOKEN."
        )
    return InputError(
        f"{wanted.what} cannot be had from {constants.ENDPOINT} ({reason(error)}): check the name, the connection and "
        "the disk, and run the same command again, or give a local folder or file."
    )


def reason(error: BaseException) -> str:
    """Return the first line of what an error of the hub's client was raised from in the first place."""
    first = list(_causes(error))[-1]
    return next((line.strip() for line in str(first).splitlines() if line.strip()), type(first).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> tuple[Path, Pin]:
    """Download the files of a checkpoint whose names match ``patterns`` at the commit that its revision stands for now.

    The repository is ``owner/name``, its revision a branch, tag or commit, or ``None`` for the default branch. Returns
    the folder, and the pin of its files.

    Raises:
        InputError: if the hub refuses or has none of the files.
    """
    with asking(wanted_model(repository)):
        info = HfApi().model_info(repository, revision=revision, timeout=SECONDS)
    names = [file.rfilename for file in info.siblings or () if _matches(file.rfilename, patterns)]
    if not names or info.sha is None:
        raise InputError(f"model {repository!r}: expected a checkpoint on the hub, found none of its files; check it.")
    folder = download(repository, info.sha, names)
    return folder, Pin(commit=info.sha, files={name: sha256(folder / name) for name in sorted(names)})


def pinned(repository: str, pin: Pin) -> Path:
    """Return the folder of a checkpoint that was fetched; missing files are downloaded at the same commit.

    Raises:
        InputError: if a file is not the one that was fetched, or is missing and refused.
    """
    folder = download(repository, pin.commit, pin.files)
    verify(f"model {repository!r}", folder, pin)
    return folder


def download(repository: str, commit: str, names: Iterable[str]) -> Path:
    """Download files of one full commit hash into the hub's cache, where they are not there yet; return their folder.

    Raises:
        InputError: if the hub refuses one.
    """
    # One file after another in this thread, so that an interrupt ends it at once; files that are finished stay.
    with asking(wanted_model(repository)):
        paths = [hf_hub_download(repository, name, revision=commit) for name in names]
    return Path(paths[0]).parent


def snapshot(repository: str, revision: str | None, patterns: Sequence[str], *, cached: bool = False) -> Path:
    """Return the folder of a checkpoint that nothing pins: as it is now, or from the cache if the hub is out of reach.

    Repository, revision and patterns are those of :func:`fetch`; ``cached`` looks into the hub's cache only.

    Raises:
        InputError: if the hub refuses, or the cache does not have it.
    """
    with asking(wanted_model(repository)):
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=[*patterns], ignore_patterns=UNWANTED, local_files_only=cached
        )
    return Path(folder)


def commit_of(folder: Path) -> str | None:
    """Return the commit of a checkpoint folder in the hub's cache; ``None`` for a folder of the user's."""
    return folder.name if folder.parent.name == "snapshots" else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, each) for each in patterns) and not any(fnmatch(name, each) for each in UNWANTED)


@dataclass(frozen=True)
class HubSource:
    """A split of a data set of the hub; ``str`` gives the source as a profile writes it.

    A ``config`` that ends as a file does is the path of the one that is read, for data sets too large to be read whole.
    """

    name: str
    config: str | None
    revision: str
    split: str

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"hub:{self.name}{config}@{self.revision}:{self.split}"


def wanted_rows(source: HubSource) -> Wanted:
    """Describe the data set of a source."""
    return Wanted(f"data source {str(source)!r}", source.name, "dataset")


def dataset_commit(source: HubSource) -> str:
    """Ask the hub for the commit that a source's revision stands for now.

    Raises:
        InputError: if the hub cannot be asked, or has no such data set or revision.
    """
    with asking(wanted_rows(source)):
        sha = HfApi().dataset_info(source.name, revision=source.revision, timeout=SECONDS).sha
    assert sha is not None, "the hub names the commit of every revision"
    return sha


def load_rows(source: HubSource, commit: str) -> "Dataset":
    """Download a split at a commit.

    Raises:
        InputError: if the hub refuses, or does not have it at that commit.
    """
    import datasets

    wanted = wanted_rows(source)
    try:
        file = {source.split: source.config} if source.config and source.config.endswith(DATA_FILES) else None
        config = None if file else source.config
        builder = datasets.load_dataset_builder(source.name, config, data_files=file, revision=commit)
        if commit not in str(builder.base_path):
            raise OSError("datasets fell back on another version that it has kept")
        builder.download_and_prepare()
        return builder.as_dataset(split=source.split)
    except (*FAILURES, datasets.exceptions.DatasetsError) as error:
        check_access(wanted)  # `datasets` loses the hub's own reason
        raise refusal(wanted, error) from None
