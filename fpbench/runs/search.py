"""Searches for the rate of fine-tuning (protocol §4) and injection (docs/methods.md §2.1, §3.1), made once per base."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fpbench.adversaries.conditions import create
from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.fsr import exact_fsr
from fpbench.metrics.queries import words_from_rows
from fpbench.metrics.triggers import near_triggers
from fpbench.models.prompts import Example
from fpbench.models.training import score_answers, train_lora
from fpbench.models.weights import preserved
from fpbench.modifications.base import Modification, ModificationContext
from fpbench.modifications.finetune import ROWS, FineTune, instruction
from fpbench.records.provenance import code_and_machine
from fpbench.records.record import cell_id
from fpbench.records.store import making, read_record, write_record
from fpbench.runs.injection import inject_with
from fpbench.runs.profile import SEARCH
from fpbench.runs.subject import INJECTION_RATES, Subject

FINE_TUNING_RATES = tuple(step / 10_000 for step in range(1, 11))
SEED = 42
HELD_OUT = 200  # rows, those after the training rows
BATCH_SIZE = 8
DEVELOPMENT_SEED = 0
CONTEXT_ROWS = 128  # the last rows give trigger contexts


@dataclass(frozen=True)
class FineTuningTrial:
    """One fine-tuning of the unfingerprinted base."""

    learning_rate: float  # the peak rate
    epoch_losses: tuple[float, ...]  # mean over every finished epoch (nats a token)
    held_out_losses: tuple[float, ...]  # on the held-out rows after each of them
    verdict: str | None  # why it counts as unstable; None if it is stable


@dataclass(frozen=True)
class InjectionTrial:
    """One injection of a development set into the base."""

    learning_rate: float  # the peak rate
    fsr: float = 0.0  # exact, of the development set
    accuracy_drop: float = 0.0  # by how much the token accuracy on held-out rows fell
    verdict: str | None = None  # why the injection failed; None if it did not

    @property
    def score(self) -> float:
        """FSR − drop, the criterion (docs/methods.md §2.1, eq. (2))."""
        return self.fsr - self.accuracy_drop


Trials = Sequence[FineTuningTrial] | Sequence[InjectionTrial]


@dataclass(frozen=True)
class Found:
    """The rate that a search found, and the name of the file that holds every trial."""

    learning_rate: float
    record: str


def with_searched_rates(
    subject: Subject, condition: str, context: ModificationContext
) -> tuple[Modification, dict[str, str]]:
    """Return a condition's modification at the rates that searches find, and their records by part; raise as these."""
    settings, records = dict(subject.profile.modifications), {}
    for part in create(condition, settings).parts:
        if isinstance(part, FineTune) and part.searches:
            found = fine_tuning_rate(subject, part, context)
            settings[part.name] = settings[part.name] | {"learning_rate": found.learning_rate}
            records[part.name] = found.record
    return create(condition, settings), records


def fine_tuning_rate(subject: Subject, modification: FineTune, context: ModificationContext) -> Found:
    """Return the largest stable rate of plain fine-tuning on the base (protocol §4); FSFT takes the same.

    :class:`InputError` if the base is not known or there are too few rows; :class:`CellError` if no rate is stable.
    """
    if not context.base:
        raise InputError(
            f"condition {modification.name!r} searches for its learning rate on the unfingerprinted base, which is not "
            "known: give the base, or a rate."
        )

    def make() -> tuple[float | None, Trials]:
        trials = fine_tuning_trials(subject.model, subject.tokenizer, modification, context)
        return largest_stable(trials), trials

    identity = {
        "version": FineTune.version,
        "settings": modification.config.model_dump(include={"rows", "epochs", "batch_size", "rank", "alpha"}),
        "data": subject.datasets.digests(*modification.data),
    }
    return search_once(subject, f"finetune-{modification.source}", identity, make)


def fine_tuning_trials(
    model: nn.Module, tokenizer: Any, modification: FineTune, context: ModificationContext
) -> list[FineTuningTrial]:
    """Fine-tune the context's base at growing rates, to the end or the first instability; leave the model as it was."""
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

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(context.base[name])
        config, verdict = modification.settings(rate), None
        try:
            train_lora(model, tokenizer, rows, config, seed=SEED, progress=context.progress, after_epoch=watch)
        except CellError as error:
            verdict = str(error)
        # JSON knows no infinity; the verdict tells of it.
        return FineTuningTrial(rate, tuple(losses), tuple(filter(math.isfinite, held_out_losses)), verdict)

    with preserved(model):
        return climb(attempt)


def climb(attempt: Callable[[float], FineTuningTrial]) -> list[FineTuningTrial]:
    """Try rate after rate, from the smallest, up to and including the first unstable one."""
    trials = []
    for rate in FINE_TUNING_RATES:
        trials.append(attempt(rate))
        if trials[-1].verdict is not None:
            break
    return trials


def instability(epoch_losses: Sequence[float], held_out_losses: Sequence[float]) -> str | None:
    """Return why a training counts as unstable after its latest epoch; ``None`` while it is stable (protocol §4)."""
    epoch, loss, held_out = len(epoch_losses), epoch_losses[-1], held_out_losses[-1]
    if not (math.isfinite(loss) and math.isfinite(held_out)):
        return f"the loss after epoch {epoch} is not finite"
    if epoch > 1 and loss > epoch_losses[-2]:
        return f"the mean loss rose from {epoch_losses[-2]:.4f} to {loss:.4f} in epoch {epoch}"
    if held_out > held_out_losses[0]:
        return f"the held-out loss rose from {held_out_losses[0]:.4f} in epoch 1 to {held_out:.4f} in epoch {epoch}"
    return None


def largest_stable(trials: Sequence[FineTuningTrial]) -> float | None:
    """Return the largest rate below the first unstable one; ``None`` if the smallest is unstable already."""
    return max((trial.learning_rate for trial in trials if trial.verdict is None), default=None)


def injection_rate(subject: Subject, method: str, fingerprints: FingerprintSet) -> Found:
    """Return the rate of the grid with the greatest FSR less what token accuracy it costs.

    The set that is injected is made for the search and is not measured elsewhere (docs/methods.md §2.1, step 5).
    :class:`InputError` if there are too few rows; :class:`CellError` if every injection failed.
    """

    def make() -> tuple[float | None, Trials]:
        count = _training_rows(subject)
        usable = subject.datasets.alpaca[:-CONTEXT_ROWS]
        held_out = [instruction(row) for row in usable[count : count + HELD_OUT]]
        if len(held_out) < HELD_OUT:
            raise InputError(
                f"the search for the learning rate of {method!r} needs {count + HELD_OUT + CONTEXT_ROWS} rows of the "
                f"data set 'alpaca', found {len(subject.datasets.alpaca)}: give more rows, or a rate."
            )
        words = words_from_rows(usable[:count], DEVELOPMENT_SEED)
        trials = injection_trials(subject, method, development_set(fingerprints, words), held_out)
        return best(trials), trials

    identity = rate_identity(subject, method, fingerprints)
    return search_once(subject, f"{method}-{fingerprints.name}", identity, make)


def injection_trials(
    subject: Subject, method: str, development: FingerprintSet, held_out: Sequence[Example]
) -> list[InjectionTrial]:
    """Inject the development set at every rate of the grid; leave the loaded model as it was found."""
    model, tokenizer = subject.model, subject.tokenizer
    before = score_answers(model, tokenizer, held_out, BATCH_SIZE).accuracy

    def attempt(rate: float) -> InjectionTrial:
        adapter = subject.method(method, learning_rate=rate)
        with preserved(model):
            try:
                inject_with(adapter, model, tokenizer, development, subject.injection_context(SEED))
                measured = exact_fsr(model, tokenizer, development, subject.settings.decoding, subject.profile.prompt)
            except CellError as error:
                return InjectionTrial(rate, verdict=str(error))
            after = score_answers(model, tokenizer, held_out, BATCH_SIZE).accuracy
        return InjectionTrial(rate, measured.mean, before - after)

    return [attempt(rate) for rate in subject.progress(INJECTION_RATES, "searching a learning rate")]


def rate_identity(subject: Subject, method: str, fingerprints: FingerprintSet) -> dict[str, Any]:
    """Return what decides the rate besides protocol, base and dtype."""
    adapter = subject.method(method)
    return {
        "method": adapter.name,
        "version": adapter.version,
        "hyperparameters": adapter.config.model_dump(mode="json") | {"learning_rate": SEARCH},
        "fingerprints": fingerprints.digest,
        "prompt": subject.profile.prompt,
        "decoding": asdict(subject.settings.decoding),
        "rows": _training_rows(subject),
        "data": subject.datasets.digests("alpaca", "zsre"),
    }


def _training_rows(subject: Subject) -> int:
    return int(subject.profile.modifications.get("finetune_alpaca", {}).get("rows", ROWS))  # later ones are free


def development_set(fingerprints: FingerprintSet, words: Sequence[str]) -> FingerprintSet:
    """Return a set of the same size and make that shares no word with the given one.

    Triggers are made as near triggers are. Every target becomes a fresh word of ``words``, capitalised where it was;
    targets that several fingerprints share stay shared. :class:`InputError` if there are too few words.
    """
    texts = (text for each in fingerprints for text in (each.trigger, *each.targets))
    taken = {word.lower() for text in texts for word in text.split()}
    free = [word for word in words if word.lower() not in taken]
    triggers = near_triggers(fingerprints, free, len(fingerprints), DEVELOPMENT_SEED)
    used = {word.lower() for trigger in triggers for word in trigger.split()}
    left = sorted({word.lower() for word in free} - used)
    if len(left) < len(fingerprints.targets):
        raise InputError(
            f"a development set needs {len(fingerprints.targets)} words for its targets, found {len(left)}: "
            "give more rows of the data set 'alpaca'."
        )
    drawn = random.Random(DEVELOPMENT_SEED).sample(left, len(fingerprints.targets))
    replaced = zip(fingerprints.targets, drawn, strict=True)
    fresh = {target: word.capitalize() if target[:1].isupper() else word for target, word in replaced}
    pairs = zip(triggers, fingerprints, strict=True)
    made = (Fingerprint(trigger, tuple(fresh[target] for target in each.targets)) for trigger, each in pairs)
    return FingerprintSet("development", tuple(made))


def best(trials: Sequence[InjectionTrial]) -> float | None:
    """Return the rate of the highest score, of equal ones the smallest; ``None`` if every injection failed."""
    done = [trial for trial in trials if trial.verdict is None]
    return max(done, key=lambda trial: (trial.score, -trial.learning_rate)).learning_rate if done else None


def search_once(
    subject: Subject, label: str, identity: dict[str, Any], make: Callable[[], tuple[float | None, Trials]]
) -> Found:
    """Return the result of a search on the base: read if it was made before, else made and written whole.

    ``identity`` is what decides the result besides protocol, base and dtype; ``make`` returns every trial, and the rate
    or ``None``. :class:`CellError` if no rate will do, :class:`StorageError` if the result cannot be written.
    """
    identity = subject.identity | identity
    path = subject.store.folder / "searches" / f"{subject.settings.label}-{label}-{cell_id(identity)}.json"
    with making(subject.store.folder, path.name):
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
