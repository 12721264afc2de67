"""Searches for a learning rate, made once per model and data on the unfingerprinted base, recorded and found again.

Here: how a search is kept, and the one for fine-tuning (protocol §4). For the injection see ``development.py``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fpbench.errors import CellError, InputError
from fpbench.models.answers import score_answers
from fpbench.models.deltas import preserved
from fpbench.models.training import train_lora
from fpbench.modifications.base import Modification, ModificationContext
from fpbench.modifications.composition import create, parts
from fpbench.modifications.finetune import FineTune
from fpbench.registry import MODIFICATIONS
from fpbench.runs.lock import making
from fpbench.runs.provenance import code_and_machine
from fpbench.runs.rates import FineTuningTrial, InjectionTrial, climb, instability, largest_stable
from fpbench.runs.store import cell_id, read_record, write_record

if TYPE_CHECKING:
    from fpbench.runs.bench import Bench

SEARCH = "search"  # what a profile writes in place of a learning rate
SEED = 42
HELD_OUT = 200  # rows, those after the training rows
BATCH_SIZE = 8

Trials = Sequence[FineTuningTrial] | Sequence[InjectionTrial]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        learning_rate: the rate to use.
        record: name of the file that holds every trial.
    """

    learning_rate: float
    record: str


def recorded(
    bench: "Bench", label: str, identity: dict[str, Any], make: Callable[[], tuple[float | None, Trials]]
) -> Found:
    """The result of a search on the base: read if it was made before, else made and written whole.

    Args:
        bench: of the base, or of a checkpoint whose base is known.
        label: what is searched for, as part of a file name.
        identity: what decides the result besides protocol, base and dtype.
        make: returns the rate, ``None`` if none will do, and every trial.

    Raises:
        CellError: if no rate will do.
        StorageError: if the result cannot be written.
    """
    identity = bench.base_identity() | identity
    path = bench.store.folder / "searches" / f"{bench.settings.label}-{label}-{cell_id(identity)}.json"
    with making(bench.store.folder, path.name):
        record = read_record(path)
        if record is None:
            rate, trials = make()
            record = {
                "id": cell_id(identity),
                "identity": identity,
                "learning_rate": rate,
                "trials": [asdict(trial) for trial in trials],
                "provenance": code_and_machine(),
            }
            write_record(path, record)
    if record["learning_rate"] is None:
        first = record["trials"][0]
        raise CellError(f"no learning rate will do ({path.name}): at {first['learning_rate']:g} {first['verdict']}")
    return Found(record["learning_rate"], path.name)


def searches(modification: Modification) -> bool:
    """Whether a modification, or a part of it, leaves its learning rate to a search."""
    own = [modification, *getattr(modification, "parts", ())]
    return any(isinstance(each, FineTune) and each.config.learning_rate == SEARCH for each in own)


def settled(bench: "Bench", condition: str, context: ModificationContext) -> tuple[Modification, dict[str, str]]:
    """The modification of a condition at the rates that searches find, and the record of each search by part.

    Raises:
        InputError: if a search is needed and the base is not known, or there are too few rows.
        CellError: if no rate is stable.
    """
    settings, records = dict(bench.profile.modifications), {}
    for name in parts(condition):
        modification = MODIFICATIONS.get(name)(**settings.get(name, {}))
        if searches(modification):
            found = fine_tuning_rate(bench, modification, context)
            settings[name] = settings[name] | {"learning_rate": found.learning_rate}
            records[name] = found.record
    return create(condition, settings), records


def fine_tuning_rate(bench: "Bench", modification: FineTune, context: ModificationContext) -> Found:
    """The largest stable rate of plain fine-tuning on the base (protocol §4); FSFT takes the same."""
    if not context.base:
        raise InputError(
            f"condition {modification.name!r} searches for its learning rate on the unfingerprinted base, which is not "
            "known: give the base, or a rate."
        )

    def make() -> tuple[float | None, Trials]:
        trials = fine_tuning_trials(bench.model, bench.tokenizer, modification, context)
        return largest_stable(trials), trials

    names = {"rows", "epochs", "batch_size", "rank", "alpha"}
    identity = {
        "version": FineTune.version,
        "settings": modification.config.model_dump(include=names),
        "data": bench.materials.digests(modification.data),
    }
    return recorded(bench, f"finetune-{modification.data}", identity, make)


def fine_tuning_trials(
    model: nn.Module, tokenizer: Any, modification: FineTune, context: ModificationContext
) -> list[FineTuningTrial]:
    """Fine-tune the base at growing rates, each time to the end or to the first sign of instability.

    Args:
        model: any with the base's parameters; it is left as it was found.
        tokenizer: its tokenizer.
        modification: how to fine-tune, besides the rate.
        context: holds the rows and the weights of the base.

    Raises:
        InputError: if there are too few rows.
    """
    examples = modification.examples(context, following=HELD_OUT)
    rows, held_out = examples[:-HELD_OUT], examples[-HELD_OUT:]

    def attempt(rate: float) -> FineTuningTrial:
        losses: list[float] = []
        held_out_losses: list[float] = []

        def watch(loss: float) -> None:
            losses.append(loss)
            held_out_losses.append(score_answers(model, tokenizer, held_out, BATCH_SIZE).loss)
            if reason := instability(losses, held_out_losses):
                raise CellError(reason)

        _become(model, context.base)
        config, verdict = modification.settings(rate), None
        try:
            train_lora(model, tokenizer, rows, config, seed=SEED, progress=context.progress, after_epoch=watch)
        except CellError as error:
            verdict = str(error)
        # JSON knows no infinity; the verdict tells of it.
        return FineTuningTrial(rate, tuple(losses), tuple(filter(math.isfinite, held_out_losses)), verdict)

    with preserved(model):
        return climb(attempt)


@torch.no_grad()
def _become(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
