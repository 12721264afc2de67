"""``fpbench run``: the grid."""

import argparse
import sys
from pathlib import Path
from typing import Any

from fpbench.verbs.common import (
    add_condition,
    add_limit,
    add_loading,
    add_profile,
    add_set_size,
    add_unconfined,
    chosen_grid,
    confine,
    prepare,
    tell,
    watch,
)

HELP = "inject, modify, measure and print the leaderboard; resumes by itself"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = verb.add_argument
    add_profile(verb, "everything that is not said here")
    add("--model", nargs="+", metavar="M", help="folders, hub ids, 'micro', 'smollm2' (default: the profile's)")
    add("--method", nargs="+", metavar="X", help="methods (default: the profile's); the base is always there")
    add("--fingerprints", nargs="+", metavar="S", help="built-in sets, .jsonl or .json files")
    add_set_size(verb)
    add_condition(verb)
    add("--out", default="fpbench-run", metavar="DIR", help="records and tables (default: %(default)s)")
    add("--seeds", nargs="+", type=int, metavar="N", help="seeds to pool (default: the profile's)")
    add(
        "--engine",
        choices=["processes", "serial", "ray"],
        default="processes",
        help="here, a small model in as many processes as cores are free; here, in one; or on a Ray cluster "
        "(default: %(default)s)",
    )
    add("--processes", type=int, metavar="N", help="(default: as many as cores are free, for a small model)")
    add("--ray-address", metavar="A", help="host:port or 'auto' (default: a Ray of this machine's own)")
    add("--check-code", action="store_true", help="warn of finished records that other code than the present measured")
    add(
        "--utility-at-doses",
        action="store_true",
        default=None,
        help="measure the accuracy on the tasks under each dose of an attack on weights, too: a further price",
    )
    add("--track", choices=["trackio", "wandb"], help="send the figures of finished cells to this tracker, too")
    add("--dry-run", action="store_true", help="print the cells, what they will take, and stop")
    add_limit(verb)
    add_unconfined(verb)
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Run what has no record yet and print the leaderboard."""
    options.offline = options.offline or options.dry_run
    loading = prepare(options)  # before anything reads whether the hub may be asked
    from fpbench.board.tables import summary
    from fpbench.runs.api import create_engine, measure
    from fpbench.runs.plan import Job, plan

    profile = chosen_grid(options, methods=options.method, utility_at_doses=options.utility_at_doses)
    engine = create_engine(options.engine, options.ray_address, options.processes)
    if options.dry_run:
        return dry_run(profile, options, loading, engine)
    confine(options, profile.methods, profile.conditions)
    shown = watch(options)
    if options.track:
        from fpbench.runs.tracking import Tracked

        shown = Tracked(shown, options.track, profile)
    rows = measure(Job.of(profile, loading, Path(options.out)), plan(profile), shown, engine)
    if options.check_code:
        from fpbench.records.store import Store, read_records
        from fpbench.runs.resume import other_code

        for remark in other_code(read_records(Store(Path(options.out)).records), profile):
            tell(remark)
    print(summary(rows))
    if not options.quiet:
        tell(f"\nrecords and tables: {options.out}")
    return 1 if any(row.failed for row in rows) else 0


def dry_run(profile: Any, options: argparse.Namespace, loading: Any, engine: Any) -> int:
    """Print what a run will take, and its first cells; start nothing, fetch nothing, write nothing."""
    from fpbench.errors import InputError
    from fpbench.models.checkpoints import resolve
    from fpbench.runs.forecast import estimate, forecast
    from fpbench.runs.memory import refuse
    from fpbench.runs.plan import Job, plan, precise
    from fpbench.runs.processes import Processes, one_process

    cells, folders, absent = plan(profile), {}, {}
    for model in profile.models:
        try:
            folders[model.label] = resolve(model.path, revision=model.revision, allow_pickle=loading.allow_pickle)
        except InputError as error:
            absent[model.label] = str(error)
    job = Job(profile, folders, precise(loading, profile), Path(options.out))
    found = estimate(job, cells, absent, engine.share if isinstance(engine, Processes) else one_process)
    tell(forecast(found, job))
    whole = len(cells) <= FEW or ("verbose" in options and options.verbose)
    every = len(cells) if whole else FIRST
    for cell in cells[:every]:
        print(cell)
    if len(cells) > every:
        print(f"… and {len(cells) - every} more cells")
    sys.stdout.flush()
    refuse([each for each in found.needs if each.label in folders], job)
    return 0


FEW, FIRST = 12, 6  # cells that a dry run lists all of, or the first of
