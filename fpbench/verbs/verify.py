"""``fpbench verify``: the ownership test, black box."""

import argparse
from pathlib import Path

from fpbench.errors import InputError
from fpbench.verbs.common import add_loading, add_question, asked, tell, watch

HELP = "test whether a model, or whatever answers at a URL, carries a set of fingerprints"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_question(verb)
    verb.add_argument(
        "--adversary", metavar="A", help="simulate the server of a thief, such as suppress@3, on a model at hand"
    )
    verb.add_argument(
        "--evidence",
        choices=["prefix", "lenient", "rank"],
        default="prefix",
        help="what counts as a match: a response that begins with a target, one that holds it in its first 24 "
        "tokens, or a target among the five likeliest first tokens (default: %(default)s)",
    )
    verb.add_argument("--transcript", metavar="FILE", help="write down every request, and go on from there if killed")
    verb.add_argument("--out", metavar="FILE", help="the whole report as JSON, in a file that does not exist yet")
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Print the verdict and its evidence; 1 where the suspect did not let the test be finished."""
    out = None if options.out is None else Path(options.out)
    if out is not None and out.exists():
        raise InputError(f"--out {out} exists: choose another name, nothing was overwritten.")
    profile, question, loading = asked(options)
    from fpbench.ownership.verify import verify_suspect
    from fpbench.records.store import check_writable, write_text

    if out is not None:
        check_writable(out.parent)
    shown = watch(options)
    found = verify_suspect(profile, question, loading, shown.bar, shown.say)
    print(found.summary())
    if out is not None:
        write_text(out, found.as_json(), mode=0o600)
        tell(f"\nreport: {out}")
    return 1 if found.verdict == "undecided" else 0
