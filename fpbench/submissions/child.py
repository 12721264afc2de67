"""The child process that runs a submitted adapter. Everything it says is a stranger's word.

It reads a number a line from standard input, finds ``request-N.json`` in its folder, does it, and answers in
``reply-N.json``. Of what else it leaves only ``changes.safetensors`` is read. Isolation of state, not a sandbox.

Torch and the rest of fpbench are imported after :func:`confine`, which does not bind threads that run already.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

CHANGES = "changes.safetensors"
VERBS = ("describe", "contract", "load", "inject")


def main(folder: Path) -> None:
    """Answer requests until there are no more."""
    limits = json.loads((folder / "limits.json").read_text())
    limit(limits["memory"], limits["file"])
    _reply(folder, 0, {"status": "done", "answer": {"confined": confine(folder)}, "adapter_seconds": 0.0})
    requests, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - it stays open
    runner = AdapterRunner(folder)
    for line in requests:
        number = int(line)
        request = json.loads((folder / f"request-{number}.json").read_text(encoding="utf-8"))
        _reply(folder, number, runner.answer(request))


def _reply(folder: Path, number: int, reply: dict[str, Any]) -> None:
    """Write a reply atomically."""
    unfinished = folder / f".reply-{number}"
    unfinished.write_text(json.dumps(reply, default=str), encoding="utf-8")
    unfinished.replace(folder / f"reply-{number}.json")


class AdapterRunner:
    """Runs the adapter of one submission."""

    def __init__(self, folder: Path) -> None:
        """Work in ``folder``, which the parent made."""
        self.folder = folder
        self.seconds = 0.0  # spent in the adapter's code
        self._name: str | None = None

    def describe(self, name: str, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Import the adapter; return the names it registers, its version and what its Config refuses."""
        from fpbench.errors import InputError
        from fpbench.registry import METHODS

        known = set(METHODS.names())
        self._import()
        names = [each for each in METHODS.names() if each not in known]
        if name not in names:
            return {"names": names}
        method = METHODS.get(name)
        self._timed(method)
        refused = {}
        for family, config in configs.items():
            try:
                method(**config)
            except InputError as error:
                refused[family] = str(error)
        self._name = name
        version = getattr(method, "version", None)
        return {"names": names, "version": None if version is None else str(version), "refused": refused}

    def contract(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run the contract suite."""
        from fpbench.contract import check

        assert self._name is not None, "described first"
        return {"findings": [dataclasses.asdict(finding) for finding in check(self._name, config)]}

    def load(self, base: str, loading: dict[str, Any], threads: int) -> dict[str, Any]:
        """Load the base that :meth:`inject` edits."""
        import torch

        from fpbench.models.loading import Loading

        torch.set_num_threads(threads)
        self.device = loading["device"]
        self.model, self.tokenizer = Loading(**loading).load(Path(base))
        return {}

    def inject(
        self,
        name: str,
        config: dict[str, Any],
        seed: int,
        prompt: str,
        fingerprints: list[dict[str, Any]],
        texts: list[str],
        pairs: list[dict[str, str]],
        statistics_tokens: int,
    ) -> dict[str, Any]:
        """Inject, and write what changed."""
        from fpbench.contract.trials import config_state, differences, structure_state, tokenizer_state
        from fpbench.errors import CellError
        from fpbench.fingerprints import Fingerprint, FingerprintSet
        from fpbench.methods.base import InjectionContext
        from fpbench.models.prompts import Example, render
        from fpbench.runs.injection import create_method, inject_with

        context = InjectionContext(
            seed=seed,
            device=self.device,
            render=lambda trigger: render(self.tokenizer, trigger, prompt),
            texts=texts,
            pairs=[Example(**pair) for pair in pairs],
            statistics_tokens=statistics_tokens,
            tokenizer=self.tokenizer,
        )
        pairs_to_hide = tuple(Fingerprint(each["trigger"], tuple(each["targets"])) for each in fingerprints)
        before = tokenizer_state(self.tokenizer), config_state(self.model), structure_state(self.model)
        method = create_method(self._name or name, self.model, config)
        report = inject_with(method, self.model, self.tokenizer, FingerprintSet("submitted", pairs_to_hide), context)
        after = tokenizer_state(self.tokenizer), config_state(self.model), structure_state(self.model)
        for what, one, other in zip(("tokenizer", "configuration", "modules"), before, after, strict=True):
            if changed := differences(one, other):
                raise CellError(
                    f"the adapter changed the {what} of the model ({changed[0]}); only weights are handed back, and "
                    "they are scored with the base's: put the whole effect into the weights."
                )
        (self.folder / CHANGES).write_bytes(report.delta.to_bytes())
        return {"seconds": dict(report.seconds), "peak_memory": report.peak_memory}

    def _import(self) -> None:
        start = perf_counter()
        sys.path.insert(0, str(self.folder / "submission"))
        try:
            importlib.import_module("adapter")
        finally:
            self.seconds += perf_counter() - start

    def _timed(self, method: Any) -> None:
        """Count the time that passes in the adapter's ``inject``."""
        inject: Callable[..., Any] = method.inject

        def timed(*arguments: Any, **named: Any) -> Any:
            start = perf_counter()
            try:
                return inject(*arguments, **named)
            finally:
                self.seconds += perf_counter() - start

        method.inject = timed

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; whatever is raised becomes the reply."""
        done = self.seconds
        try:
            verb: Callable[..., dict[str, Any]] = getattr(self, VERBS[VERBS.index(request.pop("do"))])
            reply = {"status": "done", "answer": verb(**request)}
        except BaseException as error:  # also an adapter's SystemExit: a reply is owed
            lines = str(error).strip().splitlines() or [""]
            foreseen = type(error).__module__ == "fpbench.errors"
            reason = " ".join(lines) if foreseen else f"{type(error).__name__}: {lines[0]}"
            reply = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
        return reply | {"adapter_seconds": self.seconds - done}


# Limits and confinement, which a process cannot take off again.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Linux's system calls, the same on every architecture
NO_NEW_PRIVILEGES, DEATH_SIGNAL = 38, 1  # prctl
KILL = 9
PATH_BENEATH, VERSION = 1, 1
# Rights over files that change something: bits 1 (write) and 4 to 12 (remove, make); later versions know more.
CHANGING = (1 << 1) | sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE, WRITE = 1 << 13, 1 << 14, 1 << 1
TCP = 0b11  # bind and connect
SIGNALS_AND_SOCKETS = 0b11  # abstract sockets and signals, to processes outside


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scope", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def limit(memory: int, file: int) -> None:
    """Set hard limits on this process, which its children inherit: bytes of data, and of any file written."""
    import resource

    for kind, value in (("RLIMIT_DATA", memory), ("RLIMIT_FSIZE", file), ("RLIMIT_CORE", 0)):
        # A lower limit than ours is in force, or limits are not supported.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, kind), (value, value))


def confine(folder: Path) -> list[str]:
    """Have Linux (Landlock) forbid this process everything that its work does not need.

    It may write in ``folder`` and to devices alone. Return the rights taken away: ``writes`` elsewhere, ``tcp``,
    ``signals`` to other processes. Empty where the system has no Landlock, which is no error but has to be reported.
    """
    if not sys.platform.startswith("linux"):
        return []
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(DEATH_SIGNAL, KILL, 0, 0, 0)  # does not outlive its parent
    version = system.syscall(CREATE_RULESET, None, 0, VERSION)
    if version < 1:
        return []
    files = CHANGING | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    rules = _Ruleset(files, TCP if version >= 4 else 0, SIGNALS_AND_SOCKETS if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = system.syscall(CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return []
    for path, allowed in ((folder, files), (Path("/dev"), files & (WRITE | TRUNCATE)), (Path("/dev/shm"), files)):
        if path.is_dir():
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            system.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(_Beneath(allowed, handle)), 0)
            os.close(handle)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    bound = system.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    if not bound:
        return []
    return ["writes"] + ["tcp"] * (version >= 4) + ["signals"] * (version >= 6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
