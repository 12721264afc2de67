"""``fpbench audit``: both halves of the question whose a model is, in one report."""

import argparse
import textwrap
from pathlib import Path

from fpbench.verbs.common import add_loading, add_question, asked, tell, watch

HELP = "verify and compare in one report, as Markdown and as a page, with every number traced to its record"
NOTE = (
    "Tests the suspect's answers as verify does, compares its weights with those of --base as compare does, and says "
    "what the two say together. Without --base, or with --endpoint, there are no weights to compare, and the report "
    "says so. A killed audit goes on from its transcript when the same command is run again; --out appears only when "
    "everything is finished."
)


WIDTH = 100  # of the conclusion on a terminal


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.description = NOTE
    add_question(verb)
    verb.add_argument(
        "--transcript",
        metavar="FILE",
        help="every request, to go on from if killed; outside --out, which gets a copy (default: one beside --out, "
        "DIR.transcript.jsonl, that is moved there in the end)",
    )
    verb.add_argument(
        "--out",
        default="fpbench-audit",
        metavar="DIR",
        help="report and records, in a folder that does not exist yet or is empty (default: %(default)s)",
    )
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Write the report and print its conclusion; 1 where the suspect did not let the test be finished."""
    profile, question, loading = asked(options)
    from fpbench.ownership.audit import audit_suspect
    from fpbench.text import visible

    shown = watch(options)
    found = audit_suspect(profile, question, loading, Path(options.out), shown.bar, shown.say)
    print(textwrap.fill(visible(found.conclusion), WIDTH, break_long_words=False, break_on_hyphens=False))
    tell(f"\nreport and records: {options.out}")
    return 1 if found.verification.verdict == "undecided" else 0
