"""A submission as a method: a child process does the work; what comes back is checked and put into the model."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import psutil
import torch
from pydantic import ConfigDict

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import Base, FingerprintMethod, InjectionContext, MethodConfig
from fpbench.methods.hyperparameters import overlay
from fpbench.models.checkpoints import DIGESTED
from fpbench.submissions.folder import Submission, version_of
from fpbench.submissions.manifest import EVERY, TABLES
from fpbench.submissions.process import ChildProcess, Limits
from fpbench.submissions.replies import Description, Drawn, Usage, read_changes, validated
from fpbench.text import printable

HOURS = 12.0
MEMORY_SHARE = 0.9  # of what the machine has free when the child starts
SPARE = 64 * 2**20  # bytes that a file may have beyond the base's weights
NOT_OF_RECORDS = {"method", "hyperparameters", "summary", "reported"}  # said elsewhere there, or of no measurement


def method_of(submission: Submission) -> type["SubmittedMethod"]:
    """Return the method of a submission, under its name; InputError if its ``submission.toml`` is malformed."""
    manifest = submission.method
    attributes = {
        "name": manifest.method,
        "version": version_of(submission),
        "hyperparameters": hyperparameter_tables(submission),
        "submission": submission,
        "source": submission.digest[:16],
        "about": manifest.model_dump(mode="json", exclude=NOT_OF_RECORDS),
        "__doc__": manifest.credit,
    }
    return type("SubmittedMethod", (SubmittedMethod,), attributes)


def hyperparameter_tables(submission: Submission) -> dict[str, dict[str, Any]]:
    """Return hyper-parameters by model family, those for every model below those for one."""
    tables = submission.method.hyperparameters
    families = TABLES if EVERY in tables else tuple(tables)
    return {family: overlay(tables.get(EVERY, {}), tables.get(family, {})) for family in families}


class SubmittedMethod(FingerprintMethod):
    """Injects by a child process that runs the adapter."""

    submission: ClassVar[Submission]
    source: ClassVar[str]  # digest of its code
    about: ClassVar[Mapping[str, Any]]  # whose its submission.toml says that it is
    # One that has described the adapter already, if one is open; otherwise every injection starts its own.
    child: ChildProcess | None = None

    class Config(MethodConfig):
        """Whatever the adapter's own Config takes: the child validates it."""

        model_config = ConfigDict(extra="allow", frozen=True)

    def inject(
        self, model: torch.nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> None:
        """Have the adapter edit its own copy of the base, and take over the weights that it changed.

        Raises:
            InputError: if the model comes from no checkpoint folder, which the child could load, too.
            CellError: if the adapter fails, exceeds a limit, or hands back what does not fit this base.
        """
        base = self._base(context)
        if self.child is not None:
            self._inject(self.child, base, model, fingerprints, context)
            return
        with self._own_child(base, model) as child:
            self._inject(child, base, model, fingerprints, context)

    def draw_set(
        self, model: torch.nn.Module, tokenizer: Any, count: int, context: InjectionContext
    ) -> list[Fingerprint]:
        """Have the adapter make a set of its own for the base, in a child process.

        Raises:
            InputError: if the model comes from no checkpoint folder.
            CellError: if the adapter fails, makes none or exceeds a limit.
        """
        base = self._base(context)
        with self._own_child(base, model) as child:
            _load(child, base)
            describe(child)
            config = self.config.model_dump(mode="json")
            answer = child.ask("draw_set", config=config, seed=context.seed, prompt=base.prompt, count=count)
        return [Fingerprint(each.trigger, tuple(each.targets)) for each in validated(Drawn, answer).fingerprints]

    def _base(self, context: InjectionContext) -> Base:
        if context.base is None:
            raise InputError(
                f"method {self.name!r} is a submission, which runs in a process of its own: inject it into a "
                "checkpoint with `fpbench inject` or `fpbench run`, or import its adapter yourself."
            )
        return context.base

    def _own_child(self, base: Base, model: torch.nn.Module) -> ChildProcess:
        return ChildProcess(self.submission, limits_for(model), base.folder, unconfined=base.loading.unconfined)

    def _inject(
        self,
        child: ChildProcess,
        base: Base,
        model: torch.nn.Module,
        fingerprints: FingerprintSet,
        context: InjectionContext,
    ) -> None:
        """Inject in a child, and put the changed weights into ``model``, costs and factors into ``context``."""
        untouched = _watching(base.folder)
        start = perf_counter()
        _load(child, base)
        loaded = perf_counter()
        # Nothing of the adapter's ran before this, and everything of it counts after: imports, too.
        if self.child is None:
            describe(child)
        answer = child.ask(
            "inject",
            name=self.submission.method.method,
            config=self.config.model_dump(mode="json"),
            seed=context.seed,
            prompt=base.prompt,
            fingerprints=[asdict(each) for each in fingerprints],
            texts=list(context.texts),
            pairs=[asdict(pair) for pair in context.pairs],
            statistics_tokens=context.statistics_tokens,
        )
        done = perf_counter()
        usage = validated(Usage, answer)
        parameters = dict(model.named_parameters())
        values, factors = read_changes(child.changes(), parameters)
        if not untouched():
            raise CellError(f"files of the base {base.folder} changed while the adapter ran: fetch or copy it anew.")
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
        context.factors.update(factors)
        # By our clock; loading the base does not count, as it does not for our own methods.
        context.seconds.update({"loading": loaded - start, "total": done - loaded})
        context.confinement = child.start().to_dict()
        # On a card only the child itself can see how much it took.
        context.peak_memory = child.peak_memory if base.loading.device == "cpu" else usage.peak_memory


def limits_for(model: torch.nn.Module) -> Limits:
    """Return an adapter's limits for a model: half a day, most of the free memory, a file as large as its weights."""
    file = sum(parameter.nbytes for parameter in model.parameters()) + SPARE
    return Limits(HOURS * 3600, int(psutil.virtual_memory().available * MEMORY_SHARE), file, 3 * file)


def _load(child: ChildProcess, base: Base) -> None:
    folder, threads = str(base.folder.resolve()), torch.get_num_threads()
    child.ask("load", base=folder, loading=asdict(base.loading), threads=threads)


def describe(child: ChildProcess) -> Description:
    """Have a child import and describe its adapter; CellError if that fails or it registers no method of this name."""
    name = child.submission.method.method
    found = validated(Description, child.ask("describe", name=name, configs=hyperparameter_tables(child.submission)))
    if name not in found.names:
        names = printable(", ".join(found.names)) or "no method"
        raise CellError(f'adapter.py registers {names}: expected @fpbench.register("{name}").')
    return found


def _watching(folder: Path) -> Callable[[], bool]:
    """Return a function that tells later if the files of a checkpoint are untouched."""
    files = sorted({path for pattern in DIGESTED for path in folder.glob(pattern)})

    def look() -> list[tuple[int, int, int]]:
        # A process cannot set the time of a file's last change, other than that of its content.
        return [(each.st_size, each.st_ctime_ns, each.st_ino) for each in map(Path.stat, files)]

    before = look()
    return lambda: all(path.exists() for path in files) and look() == before
