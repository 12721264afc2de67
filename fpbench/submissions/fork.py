"""A pull request from a fork, checked by a machine that trusts nothing in it: ``python -m fpbench.submissions.fork``.

Names of files come from git with zero bytes between them, and go nowhere but into this process. What is run is the
package that is installed, which must be that of the branch to be merged into, and never the fork's.
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from fpbench.errors import FpbenchError, InputError
from fpbench.submissions import thief
from fpbench.submissions.check import check
from fpbench.submissions.folder import SUBMISSIONS, Submission
from fpbench.submissions.manifest import NAME
from fpbench.text import printable

AUTHORS = SUBMISSIONS / "authors.toml"  # NAME = ["login", …], written by maintainers


def changed(checkout: Path, base: str) -> list[str]:
    """Return the paths that differ between the commit of a fork's checkout and where it left the commit ``base``.

    Raises:
        InputError: if git cannot tell.
    """
    names = _git(checkout, base, "diff", "--name-only", "--no-renames", "-z", f"{base}...HEAD").split(b"\0")
    return [name.decode("utf-8", "surrogateescape") for name in names if name]


def _git(checkout: Path, base: str, *command: str) -> bytes:
    if not base.isalnum():
        raise InputError(f"commit {printable(base)!r}: expected hexadecimal digits.")
    done = subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"git cannot compare with {base}: {printable(done.stderr.decode('utf-8', 'replace'))}")
    return done.stdout


def submission_of(paths: Sequence[str]) -> str:
    """Return the name of the one submission to which every path belongs.

    Raises:
        InputError: if a path is outside of it, there are several, or nothing changed.
    """
    names = set()
    for path in paths:
        top, _, rest = path.partition("/")
        name, _, inside = rest.partition("/")
        if top != str(SUBMISSIONS) or not inside or not NAME.fullmatch(name):
            raise InputError(
                f"{printable(path)!r} changed: expected nothing outside {SUBMISSIONS}/NAME/ in a submission; undo that."
            )
        names.add(name)
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise InputError(f"expected one submission in a pull request, found {found}: hand in each on its own.")
    return names.pop()


def check_author(checkout: Path, base: str, name: str, author: str) -> None:
    """Refuse a change to a submission that belongs to somebody else; whose a name is, the commit ``base`` says.

    ``author`` is the login of who made the pull request. A name that the commit does not hold yet is free.

    Raises:
        InputError: if the name belongs to others, its folder to nobody, or the file of authors cannot be read.
    """
    listed = _git(checkout, base, "ls-tree", "-z", "--name-only", base, f"{SUBMISSIONS}/").split(b"\0")
    authors: Mapping[str, list[str]] = {}
    if str(AUTHORS).encode() in listed:
        authors = _authors(_git(checkout, base, "show", f"{base}:{AUTHORS}"))
    if name in authors:
        if author.casefold() in (login.casefold() for login in authors[name]):
            return
        owners = ", ".join(authors[name]) or "the maintainers"
        raise InputError(f"submission {name!r} belongs to {owners}, not to {printable(author)!r}: choose another name.")
    if f"{SUBMISSIONS}/{name}".encode() in listed:
        raise InputError(f"submission {name!r} is registered to nobody: a maintainer has to add it to {AUTHORS}.")


def _authors(content: bytes) -> Mapping[str, list[str]]:
    try:
        return TypeAdapter(dict[str, list[str]]).validate_python(tomllib.loads(content.decode("utf-8")))
    except ValueError:
        raise InputError(f'{AUTHORS} is malformed: expected lines NAME = ["login"]; mend it where it stands.') from None


def main(checkout: Path, base: str, author: str) -> int:
    """Check the one submission that a fork changes.

    Returns:
        0 if there is nothing to find; 1 if its adapter fails; 2 if its files are refused.
    """
    try:
        name = submission_of(changed(checkout, base))
        check_author(checkout, base, name, author)
        submission = Submission((checkout / SUBMISSIONS / name).absolute())
        if not submission.folder.is_dir():
            raise InputError(f"the pull request removes submission {name!r}: a maintainer has to do that.")
        report = (thief.check if submission.attacks else check)(submission)
    except FpbenchError as error:
        print(f"fpbench: {printable(str(error), 1_000)}", file=sys.stderr)
        return 2
    for finding in report.findings:
        print(printable(str(finding), 1_000))
    return 0 if not report.refused else 1 if report.ran else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fpbench.submissions.fork", description=main.__doc__)
    parser.add_argument("checkout", type=Path, help="of the fork")
    parser.add_argument("base", help="commit of the branch to be merged into")
    parser.add_argument("author", help="login of who made the pull request")
    given = parser.parse_args()
    sys.exit(main(given.checkout, given.base, given.author))
