"""Why something cannot be had from the hub, in one clear line."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fpbench.errors import InputError

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
