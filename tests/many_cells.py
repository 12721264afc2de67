"""A finished grid of thousands of cells, made without measuring: real names, the committed records' figures."""

import json
from pathlib import Path

from fpbench.models.loading import Loading
from fpbench.models.meter import no_progress
from fpbench.records.record import Record, cell_id
from fpbench.runs.identity import cell_identity
from fpbench.runs.plan import Job, checkpoints, plan
from fpbench.runs.profile import PROFILES, load_profile
from fpbench.runs.worker import Worker
from tests.conftest import ROOT

COMMITTED = ROOT / "leaderboard" / "records" / "micro" / "nlf"


def profile_of(path: Path, models: int, seeds: int) -> str:
    """The micro profile with many seeds and its model under many names; writes it to ``path``."""
    text = (PROFILES / "micro.toml").read_text().replace("seeds = [42]", f"seeds = {list(range(seeds))}")
    # Garbled keys need no tokenizer: every seed has a set of its own at once.
    text = text.replace('fingerprints = ["nlf"]', 'fingerprints = ["if"]')
    start, end = text.index("[[models]]"), text.index("[data]")
    table = text[start:end]
    tables = "".join(table.replace('name = "micro"', f'name = "micro-{number}"') for number in range(models))
    path.write_text(text[:start] + tables + text[end:])
    return str(path)


def finish(profile: str, out: Path) -> int:
    """Write a finished record of every cell; returns how many."""
    wanted = load_profile(profile)
    job = Job(wanted, {each.label: ROOT / "fpbench" / "micro" / "model" for each in wanted.models}, Loading("cpu"), out)
    worker = Worker(job, no_progress)
    cells = plan(wanted)
    sets = worker.written
    for group in checkpoints(cells):
        bench = worker.subject(group[0].model)
        for cell in group:
            source = COMMITTED / cell.method / "seed-42" / cell.condition / cell.metric
            record = json.loads(source.with_suffix(".json").read_text())
            identity = cell_identity(bench, cell, sets[cell.fingerprints, cell.seed])
            record |= {"id": cell_id(identity), "identity": identity, "cell": dict(vars(cell))}
            lines = source.with_suffix(".jsonl")
            queries = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
            record.pop("queries", None)
            worker.store.write(Record.from_dict(record), queries)
    return len(cells)
