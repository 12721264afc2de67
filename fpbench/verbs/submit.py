"""``fpbench submit``: a stranger's method, or adversary."""

import argparse
import sys
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.verbs.common import (
    add_condition,
    add_loading,
    add_set_size,
    add_unconfined,
    chosen_grid,
    confine,
    prepare,
    tell,
    watch,
)

HELP = "hand in a method or an adversary of your own, or verify one that was handed in"
PARTS = {
    "new": "write submissions/NAME, a passing example to change",
    "check": "look at every file, then run the contract suite and a mock run on the micro model in a child process",
    "run": "run a profile and write the records beside the submission: a method's row; of an adversary what it leaves "
    "of other methods' rows, and its price",
    "verify": "re-run a sample of the cells that were handed in, and compare",
}


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parts = verb.add_subparsers(title="parts", metavar="PART", dest="part", required=True)
    for name, text in PARTS.items():
        part = parts.add_parser(name, help=text, description=text)
        part.add_argument("name", metavar="NAME", help="of the method or adversary, or the folder of a submission")
        said = "an adversary in place of a method" + ("" if name == "new" else ", as the folder says by itself")
        part.add_argument("--adversary", action="store_true", help=said)
        if name != "new":
            add_unconfined(part)
        if name == "run":
            _run_arguments(part)
        if name == "verify":
            _verify_arguments(part)


WHOSE = "of an adversary: whose fingerprints it is let loose on"


def _run_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--profile", metavar="P", help="bundled profile or .toml file (default: the one with the model)")
    part.add_argument(
        "--model", nargs="+", metavar="M", help="folders, hub ids, 'micro', 'smollm2' (default: the profile's)"
    )
    part.add_argument("--method", nargs="+", metavar="X", help=f"{WHOSE} (default: the profile's)")
    part.add_argument("--fingerprints", nargs="+", metavar="S", help="built-in sets, .jsonl or .json files")
    add_set_size(part)
    add_condition(part, "the profile's; of an adversary NAME at each of its doses")
    part.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds to pool (default: the profile's)")
    _out_arguments(part, "fpbench-run")


def _verify_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--profile", metavar="P", help="that the records were measured with (default: as for `run`)")
    which = part.add_mutually_exclusive_group()
    which.add_argument("--cells", type=int, default=4, metavar="N", help="FSR cells to re-run (default: %(default)s)")
    which.add_argument("--all", action="store_true", help="re-run every cell: the row then counts as re-run")
    part.add_argument("--model", nargs="+", metavar="M", help="as it was handed in (default: the profile's)")
    part.add_argument("--fingerprints", nargs="+", metavar="S", help="likewise")
    add_set_size(part)
    part.add_argument("--seeds", nargs="+", type=int, metavar="N", help="likewise")
    _out_arguments(part, "fpbench-verification")


def _out_arguments(part: argparse.ArgumentParser, out: str) -> None:
    part.add_argument("--out", default=out, metavar="DIR", help="your own records (default: %(default)s)")
    add_loading(part)


def do(options: argparse.Namespace) -> int:
    """Do one part."""
    does = {"new": _new, "check": _check, "run": _run, "verify": _verify}
    return does[options.part](options)


def _new(options: argparse.Namespace) -> int:
    from fpbench.submissions.folder import ADVERSARY, METHOD, write_new

    folder = write_new(options.name, example=ADVERSARY if options.adversary else METHOD)
    files, more = ("adversary.py", " --adversary") if options.adversary else ("adapter.py, submission.toml", "")
    print(f"{folder}: change {files} and README.md, then `fpbench submit check {options.name}{more}`")
    return 0


HEADINGS = {
    "inside": "the files, none of them run",
    "confinement": "the adapter, in a child process",
    "declaration": "the contract, promise by promise",
}


def _check(options: argparse.Namespace) -> int:
    from fpbench.submissions import check, thief
    from fpbench.submissions.folder import find

    submission = find(options.name)
    checks = thief.check if options.adversary or submission.attacks else check.check
    report = checks(submission, options.unconfined)
    for finding in report.findings:
        if finding.name in HEADINGS:
            print(HEADINGS[finding.name])
        print(f"  {finding}")
    if report.figures:
        print(
            "mock run on micro, exact FSR in %: {origin:.1f} at origin (base {base:.1f}), {nf4:.1f} under nf4, "
            "{near:.1f} on texts like the triggers; {changed:.1f} % of the model's weights moved, and these by "
            "{norm:.1f} % of their own norm".format(**report.figures)
        )
    own = report.seconds - report.adapter_seconds
    print(f"{report.seconds:.1f} s: {report.adapter_seconds:.1f} s in the adapter, {own:.1f} s the harness's own share")
    if report.confinement is not None:
        print("the child process, before the adapter was there")
        for line in report.confinement.told():
            print(f"  {line}")
    if not report.refused:
        return 0
    more = f" (and {len(report.refused) - 1} more findings)" if len(report.refused) > 1 else ""
    sys.stdout.flush()
    tell(f"fpbench: submission {options.name!r} is refused: {report.refused[0]}{more}")
    return 1 if report.ran else 2


def _run(options: argparse.Namespace) -> int:
    from fpbench.submissions.rerun import hand_in, planned

    submission = _runnable(options)
    if submission.attacks:
        options.condition = _conditions(submission, options.condition)
    elif options.method is not None:
        raise InputError(f"--method is {WHOSE}: leave it out, {submission.name!r} is a method.")
    methods = options.method if submission.attacks else [submission.name]
    profile = chosen_grid(options, methods=methods)
    confine(options, profile.methods, profile.conditions)
    loading = prepare(options)
    from fpbench.board.tables import summary
    from fpbench.records.store import Store
    from fpbench.runs.api import measure
    from fpbench.runs.plan import Job

    cells = planned(submission, profile)
    rows = measure(Job.of(profile, loading, Path(options.out)), cells, watch(options))
    print(summary(rows))
    tell(f"\nrecords to hand in: {hand_in(submission, cells, Store(Path(options.out)))}")
    return 1 if any(row.failed for row in rows) else 0


def _runnable(options: argparse.Namespace) -> Any:
    """Return the submission that is named, if it can be run; with ``--adversary`` a method cannot."""
    from fpbench.submissions.folder import THIEF, find
    from fpbench.submissions.rerun import runnable

    submission = find(options.name)
    if options.adversary and not submission.attacks:
        raise InputError(f"submission {submission.name!r} is no adversary: expected {THIEF} and no adapter.py in it.")
    return runnable(submission)


def _conditions(submission: Any, asked: list[str] | None) -> list[str]:
    """Return the conditions that an adversary is measured under, its doses by default, with the origin."""
    from fpbench.adversaries.conditions import AT, JOINT
    from fpbench.board.groups import names
    from fpbench.records.cell import ORIGIN

    name, dose = submission.name, submission.adversary.dose
    doses = [name] if dose is None else [f"{name}{AT}{amount:g}" for amount in dose.list]
    for condition in asked or ():
        if condition != ORIGIN and not names(condition, name):
            raise InputError(
                f"--condition {condition}: expected conditions that name the adversary, such as {doses[0]} or "
                f"nf4{JOINT}{doses[0]}."
            )
    return list(dict.fromkeys([ORIGIN, *(asked or doses)]))


def _verify(options: argparse.Namespace) -> int:
    from fpbench.records.cell import BASE
    from fpbench.submissions.rerun import claimed

    if options.cells < 1:
        raise InputError(f"--cells {options.cells}: expected 1 or more, or --all.")
    submission = _runnable(options)
    confine(options, [submission.name], [submission.name])  # before its records, which are a stranger's, too
    measured = {each.cell for group in claimed(submission) for each in group.measurements()}
    methods = sorted({cell.method for cell in measured} - {BASE}) if submission.attacks else [submission.name]
    profile = chosen_grid(options, methods=methods)
    loading = prepare(options)
    from tabulate import tabulate

    from fpbench.records.store import Store
    from fpbench.submissions.rerun import rerun

    count = None if options.all else options.cells
    found = rerun(submission, profile, Store(Path(options.out)), loading, watch(options), count)
    print(tabulate([_compared(each) for each in found.compared], HEADERS, tablefmt="github", disable_numparse=True))
    drawn = "The sample was" if submission.attacks else "Sample, contexts and near triggers were"
    print(
        f"\n{len(found.compared)} cells compared, {len(found.outside)} outside what is allowed. {drawn} drawn with "
        f"seed {found.draw}, which the author did not know."
    )
    for line in found.failed:
        tell(line)
    tell(f"\nboth figures on a board: `fpbench leaderboard --records {options.out}/records --claimed submissions`")
    return 1 if found.outside or found.failed else 0


HEADERS = ("model", "set", "seed", "condition", "metric", "claimed, %", "re-run, %", "allowed, points", "")


def _compared(each: Any) -> tuple[str, ...]:
    cell = each.cell
    rerun = "failed" if each.rerun is None else f"{100 * each.rerun:.2f}"
    allowed = "–" if each.allowed is None else f"{100 * each.allowed:.0f}"
    verdict = "OUTSIDE" if not each.within else "shown only" if each.allowed is None else "within"
    place = (cell.model, cell.fingerprints, str(cell.seed), cell.condition, cell.metric)
    return (*place, f"{100 * each.claimed:.2f}", rerun, allowed, verdict)
