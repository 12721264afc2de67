"""A pull request from a fork, checked by a machine that trusts nothing in it: ``python -m fpbench.submissions.fork``.

Names of files come from git with zero bytes between them, and go nowhere but into this process. What is run is the
package that is installed, which must be that of the branch to be merged into, and never the fork's.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fpbench.errors import FpbenchError, InputError
from fpbench.submissions.check import check
from fpbench.submissions.folder import SUBMISSIONS, Submission
from fpbench.submissions.manifest import NAME
from fpbench.text import printable


def changed(checkout: Path, base: str) -> list[str]:
    """Return the paths that differ between the commit of a fork's checkout and where it left the commit ``base``.

    Raises:
        InputError: if git cannot tell.
    """
    if not base.isalnum():
        raise InputError(f"commit {printable(base)!r}: expected hexadecimal digits.")
    command = ["git", "-C", str(checkout), "diff", "--name-only", "--no-renames", "-z", f"{base}...HEAD"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"git cannot compare with {base}: {printable(done.stderr.decode('utf-8', 'replace'))}")
    return [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name]


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


def main(checkout: Path, base: str) -> int:
    """Check the one submission that a fork changes.

    Returns:
        0 if there is nothing to find; 1 if its adapter fails; 2 if its files are refused.
    """
    try:
        name = submission_of(changed(checkout, base))
        submission = Submission((checkout / SUBMISSIONS / name).absolute())
        if not submission.folder.is_dir():
            raise InputError(f"the pull request removes submission {name!r}: a maintainer has to do that.")
        report = check(submission)
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
    given = parser.parse_args()
    sys.exit(main(given.checkout, given.base))
