"""How much memory and disk a run takes: what is resident when, counted from the architecture alone."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from fpbench.errors import InputError
from fpbench.methods.alphaedit import NullSpaceEditor
from fpbench.methods.base import FingerprintMethod
from fpbench.methods.lora import LoRA
from fpbench.methods.null_space import BATCH_TOKENS, WORKSPACE
from fpbench.methods.rledit import RLEdit
from fpbench.metrics.measure import METRICS
from fpbench.models.layout import context_length, layout
from fpbench.models.loading import Loading
from fpbench.models.training import PIECE, checkpointed
from fpbench.modifications.base import Modification
from fpbench.modifications.finetune import FineTune
from fpbench.modifications.prune import RIA
from fpbench.modifications.quantize import Quantization
from fpbench.records.cell import CHECKPOINT, ORIGIN, Cell
from fpbench.runs.plan import Job, checkpoints
from fpbench.runs.sets import COUNT
from fpbench.runs.worker import Worker
from fpbench.scoring.engine import LOGIT_BUDGET, token_budget

MIB, GIB = 2**20, 2**30
# Resident once torch, transformers, peft, lm-eval and bitsandbytes are imported; measured on Linux without a card.
LIBRARIES = 640 * MIB
# Tokens of the longest rows of a training batch, where nobody has counted them.
TRAINING_LENGTH = 512
# Of a token, in units of hidden size and of the width of its FFN: what one block has in its hands, and what every block
# keeps for the way back. These and the next are measured by tests/benchmarks/test_memory.py on the shape of a 3B model.
HELD_HIDDEN, HELD_WIDE = 4, 2
KEPT_HIDDEN, KEPT_WIDE = 6, 3
CACHED = 2  # keys and values of a batch take so often their size
SCORED_AT_ONCE = 256  # logits that are in float32 at once, twice
LEARNT = 8  # bytes of each logit of a training batch, in either dtype; half of its tokens were answers
QUANTISED = 12  # bytes of each weight of the layer that is being quantised
# While answers are walked, rows of the cache are copied for what continues them: so often that of a full batch, as
# measured on the micro model where every query activates.
WALKED = 8
MASKED = 512  # width of a packed batch, whose mask has as many places for each of its tokens
ADAM = 16  # bytes of a trained float32 number: itself, its gradient, two moments
# Without a card, the C library's heap keeps gaps between what is in use; measured likewise, without and with it.
GAPS = 1.5


@dataclass(frozen=True)
class Room:
    """Bytes.

    Attributes:
        fixed: weights, copies, statistics: what nothing makes smaller.
        passing: activations and logits, which smaller batches make smaller.
    """

    fixed: float = 0
    passing: float = 0

    @property
    def total(self) -> float:
        """Both."""
        return self.fixed + self.passing

    def __add__(self, other: "Room") -> "Room":
        return Room(self.fixed + other.fixed, self.passing + other.passing)


@dataclass(frozen=True)
class Phase:
    """What one phase of a run takes besides the libraries.

    Attributes:
        name: what is done.
        device: on the card, or in main memory where there is none.
        main: in main memory, whatever the device.
    """

    name: str
    device: Room
    main: Room = Room()


class Residency:
    """What is resident when, for one model."""

    def __init__(self, architecture: nn.Module, loading: Loading, training_length: int = TRAINING_LENGTH) -> None:
        """Look at shapes alone, and at how long a row of the training data is at most, in tokens."""
        self.model, self.loading, self.training_length = architecture, loading, training_length
        text: Any = architecture.config.get_text_config()  # type: ignore[operator, union-attr]
        self.bytes = getattr(torch, loading.precision).itemsize
        self.weights = float(sum(p.numel() for p in architecture.parameters()) * self.bytes)
        self.hidden, self.wide = int(text.hidden_size), int(getattr(text, "intermediate_size", 4 * text.hidden_size))
        self.blocks, self.vocabulary = int(text.num_hidden_layers), int(text.vocab_size)
        heads = int(text.num_attention_heads)
        size = getattr(text, "head_dim", None) or self.hidden // heads
        self.cached = 2 * (getattr(text, "num_key_value_heads", None) or heads) * size
        head = architecture.get_output_embeddings()  # type: ignore[operator]
        self.linears = [m for m in architecture.modules() if isinstance(m, nn.Linear) and m is not head]

    def resident(self) -> Phase:
        """The model, and the copies of its weights that every modification is undone with."""
        return Phase("model", Room(self.weights), Room(self.weights))

    def scoring(self, walking: bool) -> Phase:
        """A full batch: what is read, and the logits that are asked for.

        Args:
            walking: whether answers of many queries are walked, with copies of their keys and values.
        """
        tokens = self.loading.token_budget or token_budget()
        copies = WALKED * tokens * self.blocks * self.cached * self.bytes if walking else 0
        # Logits, and what of them is in float32 at the moment.
        logits = min(tokens * self.vocabulary, LOGIT_BUDGET) * self.bytes + SCORED_AT_ONCE * self.vocabulary * 8
        return Phase("scoring", Room(passing=self.reading(tokens) + max(logits, copies)))

    def reading(self, tokens: int) -> float:
        """Bytes that a batch takes without logits: what one block holds, all keys and values, the mask."""
        held = tokens * (HELD_HIDDEN * self.hidden + HELD_WIDE * self.wide) * self.bytes
        cache = CACHED * tokens * self.blocks * self.cached * self.bytes
        return float(held + cache + tokens * MASKED * (self.bytes + 3))

    def training(self, rank: int, batch_size: int) -> Room:
        """Adapters with their optimiser, activations of a batch, and its logits with their gradients."""
        adapters = sum(rank * (each.in_features + each.out_features) for each in self.linears)
        length = min(self.training_length, context_length(self.model) or self.training_length)
        twice = bool(checkpointed(self.model))
        tokens = min(batch_size * length, max(PIECE, length)) if twice else batch_size * length
        return Room(ADAM * adapters, self.activations(tokens, twice) + self.answers(tokens))

    def activations(self, tokens: int, twice: bool) -> float:
        """Bytes kept for the way back: of all blocks, or of one and what enters each where they are computed twice."""
        block = tokens * (KEPT_HIDDEN * self.hidden + KEPT_WIDE * self.wide) * self.bytes
        return float(block + tokens * self.blocks * self.hidden * self.bytes if twice else block * self.blocks)

    def answers(self, tokens: int) -> float:
        """Bytes of the logits of a training batch: all of them, those of the answers in float32, and gradients."""
        return float(tokens * self.vocabulary * LEARNT)

    def injection(self, method: FingerprintMethod) -> Phase:
        """What a method of this package takes; of another one only that a delta may hold all weights is known."""
        changed = self.changed(method)
        # A delta as it was made, as the bytes of its file, and as it was read back.
        delta = Room(3 * changed)
        match method:
            case LoRA():
                return Phase(method.name, self.training(method.config.rank, method.config.batch_size), delta)
            case NullSpaceEditor():
                count, width = len(method.blocks(self.model)), layout(self.model).down_proj(0).in_features
                # All second moments stand while text is read, and while one after another is decomposed.
                batch = BATCH_TOKENS * (2 * self.hidden * self.bytes + 8 * width)
                # Where the card has no room for a decomposition, it is made in main memory.
                taken = Room(count * 4 * width**2, max(batch, WORKSPACE * 4 * width**2))
                return Phase(method.name, taken, Room(2 * changed + count * 4 * width**2))
            case RLEdit():
                modules, named = method.modules(self.model), dict(self.model.named_parameters())
                shapes = {tuple(named[f"{name}.weight"].shape) for name in modules}
                width = sum(map(sum, shapes))
                policy = ADAM * 2 * width * method.config.rank * method.config.hypernetwork_blocks
                # The sum of shifts and its gradient in float32, the original, and one shift in float64.
                states = changed / self.bytes * (8 + self.bytes) + 8 * max(out * into for out, into in shapes)
                return Phase(method.name, Room(policy + states), delta)
        return Phase(method.name, Room(), delta)

    def modification(self, modification: Modification) -> list[Phase]:
        """What each part of a modification takes."""
        phases = []
        for each in getattr(modification, "parts", [modification]):
            match each:
                case FineTune():
                    # The weights from before, for the proof; a search of the rate needs as much to come back to.
                    copies = Room(self.weights)
                    phases.append(Phase(each.name, self.training(each.config.rank, each.config.batch_size), copies))
                case RIA():
                    length = min(each.config.length, context_length(self.model) or each.config.length)
                    # What goes into a block and what comes out, of all windows; scores of the widest matrix in float32.
                    states = 2 * each.config.samples * length * self.hidden * self.bytes
                    scores = 4 * 4 * max(each.weight.numel() for each in self.linears)
                    phases.append(Phase(each.name, Room(states + scores)))
                case Quantization():
                    # Codes beside the layer they replace, which gives its weight back at once, and float32 of both.
                    phases.append(Phase(each.name, Room(QUANTISED * max(each.weight.numel() for each in self.linears))))
                case _:
                    largest = max(parameter.numel() for parameter in self.model.parameters())
                    phases.append(Phase(each.name, Room(4 * 8 * largest)))
        return phases

    def spectra(self, methods: Iterable[FingerprintMethod]) -> float:
        """Bytes of the key statistics of all modules that some methods edit, in main memory and on disk."""
        editors = [each for each in methods if isinstance(each, NullSpaceEditor)]
        blocks = {block for each in editors for block in each.blocks(self.model)}
        return 4.0 * len(blocks) * layout(self.model).down_proj(0).in_features ** 2 if blocks else 0.0

    def delta(self, method: FingerprintMethod, fingerprints: int) -> float:
        """Bytes of one stored injection: factors of an editor, else every weight that may change."""
        if isinstance(method, NullSpaceEditor):
            named = dict(self.model.named_parameters())
            return float(sum(8 * fingerprints * sum(named[name].shape) for name in method.edited(self.model)))
        return self.changed(method)

    def changed(self, method: FingerprintMethod) -> float:
        """Bytes of the weights that a method may change."""
        if isinstance(method, LoRA):
            return float(sum(each.weight.numel() for each in self.linears) * self.bytes)
        named, edited = dict(self.model.named_parameters()), method.edited(self.model)
        return float(sum(named[name].numel() for name in (named if edited is None else edited)) * self.bytes)


def peak(phases: Sequence[Phase], card: bool) -> tuple[Room, Room]:
    """Most that is taken at once: in main memory, libraries included, and on the card.

    Args:
        phases: the first stays, the others come one after another.
        card: whether ``device`` means a card.
    """
    stays, others = phases[0], phases[1:] or [Phase("", Room())]
    libraries = Room(LIBRARIES)
    if not card:
        most = _most(each.device + each.main for each in others)
        return libraries + stays.device + stays.main + Room(most.fixed, GAPS * most.passing), Room()
    main, device = _most(each.main for each in others), _most(each.device for each in others)
    return libraries + stays.main + main, stays.device + device


def _most(rooms: Iterable[Room]) -> Room:
    """Most of each kind: what may not fit and what always must can belong to different phases."""
    found = list(rooms)
    fixed = max(room.fixed for room in found)
    return Room(fixed, max(room.total for room in found) - fixed)


def free_memory() -> float:
    """Bytes of main memory that nobody uses, this process's own included."""
    return float(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def free_card(device: str) -> float:
    """Bytes of a card that nobody uses."""
    return float(torch.cuda.mem_get_info(device)[0])


def free_disk(folder: Path) -> float:
    """Bytes that are free where ``folder`` is or would be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return float(shutil.disk_usage(there).free)


def shown(size: float) -> str:
    """A size to read."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


# What a job needs of memory and disk; what cannot fit is refused before anything starts.


RECORD, QUERY = 8_192, 140  # bytes of a record, and of a line of its per-query results


@dataclass(frozen=True)
class Needs:
    """What the cells of one model need at the peak.

    Attributes:
        label: of the model.
        main: of main memory.
        card: of the card; nothing without one.
        disk: in the folder of the store, bytes.
    """

    label: str
    main: Room
    card: Room
    disk: float

    def short(self, device: str) -> str | None:
        """What no smaller batch makes fit, in a sentence; ``None`` where everything fits."""
        for what, room, free in (
            ("main memory", self.main.fixed, free_memory()),
            ("memory on the card", self.card.fixed, free_card(device) if self.card.fixed else 0.0),
        ):
            if room > free:
                return (
                    f"model {self.label!r} cannot be run here: weights, copies and statistics need {shown(room)} of "
                    f"{what}, {shown(free)} are free; take a smaller model, --dtype bfloat16 or another machine, or "
                    "leave out methods and conditions."
                )
        return None


def needs_of(label: str, worker: Worker, cells: Sequence[Cell], training_length: int = TRAINING_LENGTH) -> Needs:
    """What some cells of one model need, by its architecture alone.

    Args:
        label: of the model.
        worker: gives methods and modifications; it measures nothing.
        cells: those without a record.
        training_length: tokens of the longest rows that are trained on.
    """
    job, handed_in = worker.job, any(cell.method == CHECKPOINT for cell in cells)
    subject = worker.subject(label, handed_in)
    residency = Residency(subject.architecture, job.loading, training_length)
    phases = [residency.resident()]
    methods: dict[str, FingerprintMethod] = {
        name: subject.method(name)
        for name in dict.fromkeys(cell.method for cell in cells)
        if name in job.profile.methods
    }
    if handed_in and label in job.folders:
        phases.append(Phase("base", Room(), Room(residency.weights)))
    spectra = residency.spectra(methods.values())
    phases[0] = Phase("model", phases[0].device, phases[0].main + Room(spectra))
    phases.append(residency.scoring(any(cell.metric == "triggers" for cell in cells)))
    phases += [residency.injection(method) for method in methods.values()]
    for condition in dict.fromkeys(cell.condition for cell in cells if cell.condition != ORIGIN):
        phases += residency.modification(subject.modification(condition))
    main, card = peak(phases, job.loading.device != "cpu")
    deltas = sum(
        residency.delta(methods[group[0].method], COUNT) for group in checkpoints(cells) if group[0].method in methods
    )
    return Needs(label, main, card, deltas + spectra + sum(_recorded(worker, cell) for cell in cells))


def require_room(worker: Worker, cells: Sequence[Cell]) -> None:
    """Refuse a job that this machine has not the memory or the disk for; reads no weights.

    Raises:
        InputError: naming the model, what it needs and what is free.
    """
    refuse([needs_of(label, worker, own) for label, own in by_model(cells)], worker.job)


def refuse(needs: Sequence[Needs], job: Job) -> None:
    """Refuse what this machine has not the memory or the disk for.

    Raises:
        InputError: naming what is short of what.
    """
    for each in needs:
        if reason := each.short(job.loading.device):
            raise InputError(reason)
    out = job.out
    disk, free = sum(each.disk for each in needs), free_disk(out)
    if disk > free:
        raise InputError(
            f"the run would write {shown(disk)} to {out}, where {shown(free)} are free: choose another disk with --out."
        )


def by_model(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """The cells of each model, in order."""
    for label in dict.fromkeys(cell.model for cell in cells):
        yield label, [cell for cell in cells if cell.model == label]


def _recorded(worker: Worker, cell: Cell) -> float:
    """Bytes of a cell's record and its per-query results."""
    return RECORD + QUERY * METRICS[cell.metric].queries(worker.job.profile.sizes, COUNT)
