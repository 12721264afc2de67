"""``fpbench leaderboard``: tables, page and figures from records."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from fpbench.errors import InputError

DEFAULT = "fpbench-run"
HELP = "regenerate the tables from records alone"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = verb.add_argument
    add(
        "run",
        nargs="?",
        metavar="RUN",
        help=f"a run, its records, or the records of one model (default: {DEFAULT}); a contested.toml beside the "
        "records says which methods are unreliable, and why",
    )
    add("--records", metavar="DIR", help="the same, as an option")
    add(
        "--out",
        metavar="DIR",
        help="also write leaderboard.md, .csv (one line a figure), _wide.csv (one line a row), .json, .html and .tex "
        "there",
    )
    add(
        "--plots",
        metavar="DIR",
        help="also draw figures there, SVG and PDF with captions, and in the leaderboard.html of --out (needs the "
        "extra 'plots')",
    )
    add("--format", choices=["md", "csv", "json", "html", "latex"], default="md", help="what is printed (default: md)")
    add(
        "--claimed",
        metavar="DIR",
        help="folder of submissions: what their authors measured is shown as claimed, beside what --records has of it",
    )
    add("--rescore", action="store_true", help="recompute every figure from the per-query results")


def do(options: argparse.Namespace) -> int:
    """Print the tables; write them and the figures where that is asked for."""
    if options.run is not None and options.records is not None:
        raise InputError(
            f"{options.run} and --records {options.records} name the records twice: leave one of them out."
        )
    from fpbench.board.leaderboard import regenerate
    from fpbench.board.tables import render
    from fpbench.submissions.discovery import adversaries_of

    # Those that are handed in have their levels from what lies there.
    with adversaries_of(Path(options.claimed)) if options.claimed is not None else nullcontext():
        rows = regenerate(
            options.run or options.records or DEFAULT,
            out=options.out,
            plots=options.plots,
            rescore=options.rescore,
            claimed=options.claimed,
        )
        print(render(rows, options.format), end="")
    return 0
