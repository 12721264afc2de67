"""An engine of `fpbench run` that begins nothing it could not finish in time."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.device.step import SETTINGS, Step

# What of a record's result is worth a look at once; the record has the rest.
SHOWN = ("mean", "greedy", "average", "rate", "accuracy", "word_perplexity", "seconds", "peak_memory")


class Punctual:
    """Takes the cheap cells of every method first, and tells a step of each.

    The records are those of any other engine: `fpbench run` with the same profile and folder goes on where this ends.
    """

    def __init__(self, step: Step) -> None:
        """Know nothing yet of how long anything takes."""
        self.step = step
        self.seen: dict[str, float] = {}
        self.tokens = 0

    def check(self, worker: Any, cells: Any) -> None:
        """Refuse what the machine cannot hold, as the serial engine does."""
        from fpbench.runs.engine import Serial

        Serial().check(worker, cells)

    def measure(self, worker: Any, checkpoints: Sequence[Sequence[Any]], watch: Any) -> dict[str, str]:
        """Measure the cells, tier by tier and method by method; return the ids of their records by path."""
        from fpbench.scoring.engine import limited_to

        with limited_to(worker.job.loading.token_budget):
            return self._measure(worker, checkpoints)

    def _measure(self, worker: Any, checkpoints: Sequence[Sequence[Any]]) -> dict[str, str]:
        names, hooked = {}, None
        to_inject = {cell.method for cells in checkpoints for cell in cells if cell.metric == "cost"}
        for cells in by_price(checkpoints):
            if cells[0].method in to_inject and cells[0].metric != "cost":
                for cell in cells:
                    self.step.leave_out(str(cell), "it was not injected")
                continue
            subject = worker.subject(cells[0].model)
            if subject.model is not hooked:  # a model whose weights could not be restored is loaded again
                hooked = subject.model
                hooked.get_input_embeddings().register_forward_pre_hook(self._count)
            bench, fingerprints = worker.bench(cells)
            found, work = bench.measure(cells, fingerprints)
            names |= found
            finished = [cell for cell in cells if worker.store.find(cell, found[cell.path])]
            for cell in finished:  # of an earlier run that was killed; they come first
                next(work)
                to_inject -= {cell.method} if cell.metric == "cost" else set()
            pending = [cell for cell in cells if cell not in finished]
            for number, cell in enumerate(pending):
                if not self.step.fits(str(cell), self.estimate(cell)):
                    for other in pending[number + 1 :]:
                        self.step.leave_out(str(other), f"it comes after {cell}")
                    break
                began, self.tokens = time.time(), 0
                next(work)
                done = self.note(cell, time.time() - began)
                to_inject -= {cell.method} if done and cell.metric == "cost" else set()
            work.close()
        return names

    def _count(self, module: Any, given: tuple[Any, ...]) -> None:
        self.tokens += given[0].numel()

    def estimate(self, cell: Any) -> float:
        """Seconds that a cell takes: a fifth more than the same took at most, else what is guessed."""
        key = key_of(cell)
        return 1.2 * self.seen[key] if key in self.seen else self.step.guess(key)

    def note(self, cell: Any, seconds: float) -> bool:
        """Report a cell and the tokens, padding included, that the model read meanwhile; returns whether it is done."""
        key = key_of(cell)
        self.seen[key] = max(seconds, self.seen.get(key, 0.0))
        path = self.step.options.out / "grid" / "records" / f"{cell.path}.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        entry = {
            "cell": str(cell), "status": record["status"], "seconds": round(seconds, 2), "tokens_read": self.tokens,
            "tokens_read_a_second": round(self.tokens / seconds),
        }  # fmt: skip
        if record["status"] == "failed":
            entry["error"] = record["reason"]
        else:
            entry["result"] = {name: record["result"][name] for name in SHOWN if name in record["result"]}
            trained = record["proof"].get("modification", {}).get("tokens_seen")
            if trained:
                entry["tokens_trained"] = trained
                entry["tokens_trained_a_second"] = round(trained / record["cost"]["modification_seconds"])
        self.step.report["cells"].append(entry)
        self.step.save()
        return bool(record["status"] == "done")


def by_price(checkpoints: Sequence[Sequence[Any]]) -> Iterator[list[Any]]:
    """The cells of each checkpoint in three lots, and the cheap lots of all checkpoints first.

    First cost and FSR at origin, quantised and pruned; then the other metrics; fine-tuning last.
    """

    def price(cell: Any) -> int:
        return 2 if cell.condition.startswith("finetune") else 0 if cell.metric in ("cost", "fsr") else 1

    for lot in range(3):
        for cells in checkpoints:
            if chosen := [cell for cell in cells if price(cell) == lot]:
                # At origin nothing has to be made first, so that any order will do.
                yield sorted(chosen, key=lambda cell: float(SETTINGS["guesses"][key_of(cell)])) if lot == 1 else chosen


def key_of(cell: Any) -> str:
    """What decides how long a cell takes: the injection, the modification or the metric."""
    if cell.metric == "cost":
        return str(cell.method)
    return str(cell.metric if cell.condition == "origin" else cell.condition)
