"""``fpbench leaderboard``: tables, page and figures from records."""

import argparse

HELP = "regenerate the tables from records alone"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = verb.add_argument
    add(
        "--records",
        default="fpbench-run/records",
        metavar="DIR",
        help="or the run that holds them (default: %(default)s); its contested.toml, if any, says which methods are "
        "unreliable, and why",
    )
    add("--out", metavar="DIR", help="also write leaderboard.md, .csv, .json, .html and .tex there")
    add(
        "--plots",
        metavar="DIR",
        help="also draw figures there, and in the leaderboard.html of --out (needs the extra 'plots')",
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
    from fpbench.board.leaderboard import regenerate
    from fpbench.board.tables import render

    rows = regenerate(
        options.records, out=options.out, plots=options.plots, rescore=options.rescore, claimed=options.claimed
    )
    print(render(rows, options.format), end="")
    return 0
