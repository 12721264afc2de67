"""An estimate to read: a table of the work that is left, then time, memory and disk beside what there is."""

import math

import torch
from tabulate import tabulate

from fpbench.models.loading import Loading
from fpbench.runs.estimates.estimate import START, Estimate, Part
from fpbench.runs.estimates.room import free_card, free_disk, free_memory, shown
from fpbench.runs.job import Job

MEASURED, ESTIMATED, UNKNOWN = "measured before on this machine", "estimated", "unknown"


def forecast(estimate: Estimate, job: Job) -> str:
    """The estimate as plain text."""
    lines = [f"{estimate.cells} cells, {estimate.pending} of them to do."]
    if estimate.parts:
        rows = [(each.model, each.name, each.times, time(each.seconds), _basis(each)) for each in estimate.parts]
        header = ("model", "what", "times", "time", "rests on")
        lines += ["", tabulate(rows, header, tablefmt="github", disable_numparse=True), ""]
    if estimate.pending:
        lines += [_time(estimate), *_memory(estimate, job.loading), _disk(estimate, job)]
    lines += [f"no time for {label}: {reason}" for label, reason in estimate.silent.items()]
    return "\n".join(lines)


def total(estimate: Estimate) -> float:
    """Seconds of everything that is known, the start of the process included."""
    return START + sum(part.seconds or 0.0 for part in estimate.parts)


def time(seconds: float | None) -> str:
    """A duration to read, in two digits or so."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def _basis(part: Part) -> str:
    if part.seconds is None:
        return "nobody but its author knows"
    return MEASURED if part.measured else ESTIMATED


def _time(estimate: Estimate) -> str:
    unknown = sum(part.seconds is None for part in estimate.parts)
    past = sum(part.seconds or 0.0 for part in estimate.parts if part.measured)
    share = past / total(estimate)
    basis = f"{share:.0%} of it {MEASURED}, the rest {ESTIMATED}" if past else ESTIMATED
    missing = f", without {unknown} of unknown cost" if unknown else ""
    absent = ", without the models named below" if estimate.silent else ""
    threads = f"on {torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "on one thread"
    return f"time    {time(total(estimate))} {threads}, other work aside ({basis}){missing}{absent}"


def _memory(estimate: Estimate, loading: Loading) -> list[str]:
    if not estimate.needs:
        return []
    main = max(estimate.needs, key=lambda each: each.main.total).main.total
    card = max(estimate.needs, key=lambda each: each.card.total).card.total
    lines = [_of("memory", main, free_memory())]
    return [*lines, _of("card", card, free_card(loading.device))] if card else lines


def _of(what: str, need: float, free: float) -> str:
    smaller = "; batches that do not fit are tried again in halves" if need > free else ""
    return f"{what:7} {shown(need)} at the peak, of {shown(free)} free ({ESTIMATED}){smaller}"


def _disk(estimate: Estimate, job: Job) -> str:
    disk = sum(each.disk for each in estimate.needs)
    return f"disk    {shown(disk)} in {job.out}, of {shown(free_disk(job.out))} free ({ESTIMATED})"
