"""Injection as the harness does it: the adapter edits, the harness measures what changed, and both are kept on disk."""

import logging
from collections import UserDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fpbench.errors import CellError
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext
from fpbench.methods.hyperparameters import hyperparameters
from fpbench.methods.null_space import KeyStatistics
from fpbench.models.meter import Meter
from fpbench.models.sketch import sketch
from fpbench.models.weights import Delta, difference, preserved
from fpbench.records.record import SCHEMA, cell_id
from fpbench.records.store import making, read_record, set_aside, write_bytes, write_record, written
from fpbench.registry import METHODS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class InjectionReport:
    """An injection's delta, with what it changed and cost."""

    seconds: Mapping[str, float]  # wall clock by part; "total" includes the others
    peak_memory: int  # bytes
    # "fraction" of the model's entries that moved, "relative_norm" ‖ΔW‖/‖W‖ over the changed parameters, "bytes" of the
    # stored delta, "dense_bytes" of the changed parameters, and the largest "rank" of a change stored as factors.
    changed: Mapping[str, float]
    delta: Delta  # the changed parameters with their new values
    sketch: str | None = None  # of ΔW, by which two updates are compared (models/sketch.py)
    confinement: Mapping[str, Any] | None = None  # what a submission was kept from; None for a method of our own
    text: Mapping[str, int] = field(default_factory=dict)  # that key statistics were taken over; none if there are none
    search: Mapping[str, Any] | None = None  # the rate that was searched for, and the record of the search

    def __repr__(self) -> str:
        moved = (
            f"{self.changed['fraction']:.1%} of the weights moved, by {self.changed['relative_norm']:.1%} of their norm"
        )
        cost = f"{self.seconds['total']:.1f} s, {self.peak_memory / 2**20:.0f} MiB at the peak"
        return f"InjectionReport: {cost}; {moved}"

    def save(self, path: Path) -> None:
        """Write the delta to ``path`` as safetensors, then its figures, which name the digest of the weights."""
        if path.is_dir():
            set_aside(path)
        write_bytes(path, self.delta.to_bytes())
        figures = {"seconds": dict(self.seconds), "peak_memory": self.peak_memory, "changed": dict(self.changed)}
        figures |= {"sketch": self.sketch, "confinement": self.confinement and dict(self.confinement)}
        figures["text"] = dict(self.text)
        write_record(path.with_suffix(".json"), figures | {"weights_digest": self.delta.digest})

    @staticmethod
    def load(path: Path, originals: Mapping[str, Tensor]) -> "InjectionReport | None":
        """Read a stored injection; ``None`` if there is none or its weights are not those that were written.

        What is damaged is set aside. A delta stored as factors needs the base's weights ``originals``:
        :class:`CellError` if some are not there.
        """
        figures = read_record(path.with_suffix(".json"))
        if figures is None:
            set_aside(path.with_suffix(".json"))
        if figures is None or not path.is_file():
            return None
        delta = Delta.from_bytes(path.read_bytes(), originals)
        match figures:
            case {"seconds": dict(seconds), "peak_memory": int(peak), "changed": dict(changed), "weights_digest": name}:
                if delta is not None and delta.digest == name:
                    further = {name: figures.get(name) for name in ("sketch", "confinement")}
                    return InjectionReport(seconds, peak, changed, delta, **further, text=figures.get("text", {}))
        logger.warning("the stored delta %s is damaged: it is injected again.", path.name)
        set_aside(path)
        return None


def create_method(name: str, model: nn.Module, config: Mapping[str, Any]) -> FingerprintMethod:
    """Return a method with its family's hyper-parameters and ``config``; :class:`InputError` if any is unknown."""
    method: FingerprintMethod = METHODS.get(name)(**hyperparameters(name, model, dict(config)))
    return method


def inject_with(
    method: FingerprintMethod,
    model: nn.Module,
    tokenizer: Any,
    fingerprints: FingerprintSet,
    context: InjectionContext,
    originals: dict[str, Tensor] | None = None,
) -> InjectionReport:
    """Inject into ``model`` in place, or leave it as it was if anything fails.

    ``originals`` are the model's weights, if there are copies already. :class:`CellError` if nothing changed, something
    changed that the method does not name in ``edited``, or the weights are not finite.
    """
    allowed = method.edited(model)
    with preserved(model, originals) as before:
        with Meter() as meter:
            returned = method.inject(model, tokenizer, fingerprints, context)
        delta = difference(model if returned is None else returned, before, context.factors)
        sketched = sketch(delta.values, before)
    if allowed is not None and (strayed := sorted(delta.values.keys() - set(allowed))):
        raise CellError(f"method {method.name!r} changed {strayed[0]}, which its edited() does not name.")
    delta.apply(model)
    changed = {"fraction": delta.changed_fraction, "relative_norm": delta.relative_norm}
    changed |= {"bytes": delta.size, "dense_bytes": delta.dense_size, "rank": delta.rank}
    # A method that works in another process has timed itself; the rest of its time here is spent waiting for it.
    seconds = {"total": meter.seconds} | context.seconds
    peak = context.peak_memory or meter.peak_memory
    return InjectionReport(seconds, peak, changed, delta, sketched, context.confinement, context.text)


class Spectra(UserDict[str, KeyStatistics]):
    """Key statistics by module: read from the disk on first need, unless damaged, and written to it when they are set.

    They are computed once for a model and a text, whole, so that every run may cut them where it likes.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Use ``folder`` for statistics that ``identity`` decides but for the module; nothing is created yet."""
        super().__init__()
        self.folder, self.identity = folder, identity

    def path(self, module: str) -> Path:
        """Return the file of one module's statistics."""
        return self.folder / f"{module}-{cell_id(self.identity | {'schema': SCHEMA, 'module': module})}.safetensors"

    def making(self) -> AbstractContextManager[None]:
        """Wait until no other worker computes statistics of this model over this text."""
        return making(self.folder.parent, f"statistics-{cell_id(self.identity)}")

    def __contains__(self, module: object) -> bool:
        if module not in self.data and (stored := KeyStatistics.load(self.path(str(module)))):
            self.data[str(module)] = stored
        return module in self.data

    def __setitem__(self, module: str, statistics: KeyStatistics) -> None:
        with written(self.path(module)) as temporary:
            statistics.save(temporary)
        self.data[module] = statistics
