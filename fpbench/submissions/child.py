"""The child process that runs a submitted adapter. Everything it says is a stranger's word.

It reads a number a line from standard input, finds ``request-N.json`` in its folder, does it, and answers in
``reply-N.json``. It leaves nothing else that anybody reads, except ``changes.safetensors``.
"""

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

from fpbench.submissions.confinement import confine, limit

Reply = dict[str, Any]
CHANGES = "changes.safetensors"
VERBS = ("introduce", "contract", "load", "inject")


class Child:
    """One submission, its adapter imported on first need."""

    def __init__(self, folder: Path) -> None:
        """Work in ``folder``, which the parent made."""
        self.folder = folder
        self.seconds = 0.0  # spent in the adapter's code
        self._name: str | None = None

    def introduce(self, name: str, configs: dict[str, dict[str, Any]]) -> Reply:
        """Import the adapter and say what it is: the names it registers, its version, what its Config refuses."""
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

    def contract(self, config: dict[str, Any]) -> Reply:
        """Run the contract suite."""
        from fpbench.contract import check

        assert self._name is not None, "introduced first"
        return {"findings": [dataclasses.asdict(finding) for finding in check(self._name, config)]}

    def load(self, base: str, options: dict[str, Any], threads: int) -> Reply:
        """Load the base that :meth:`inject` edits."""
        import torch

        from fpbench.models.loading import load_model

        torch.set_num_threads(threads)
        self.device = options["device"]
        self.model, self.tokenizer = load_model(Path(base), **options)
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
    ) -> Reply:
        """Inject, and write what changed."""
        from fpbench.contract.facts import changes, config_facts, structure_facts, tokenizer_facts
        from fpbench.errors import CellError
        from fpbench.fingerprints import Fingerprint, FingerprintSet
        from fpbench.methods.base import InjectionContext
        from fpbench.models.examples import Example
        from fpbench.models.prompts import render
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
        before = tokenizer_facts(self.tokenizer), config_facts(self.model), structure_facts(self.model)
        method = create_method(self._name or name, self.model, config)
        report = inject_with(method, self.model, self.tokenizer, FingerprintSet("submitted", pairs_to_hide), context)
        after = tokenizer_facts(self.tokenizer), config_facts(self.model), structure_facts(self.model)
        for what, one, other in zip(("tokenizer", "configuration", "modules"), before, after, strict=True):
            if changed := changes(one, other):
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
        """Count the time that passes in the adapter's verb."""
        inject: Callable[..., Any] = method.inject

        def timed(*arguments: Any, **named: Any) -> Any:
            start = perf_counter()
            try:
                return inject(*arguments, **named)
            finally:
                self.seconds += perf_counter() - start

        method.inject = timed

    def answer(self, request: Reply) -> Reply:
        """Do what is asked; whatever is raised is the answer then."""
        done = self.seconds
        try:
            verb: Callable[..., Reply] = getattr(self, VERBS[VERBS.index(request.pop("do"))])
            reply = {"status": "done", "answer": verb(**request)}
        except BaseException as error:  # also an adapter's SystemExit: a reply is owed
            lines = str(error).strip().splitlines() or [""]
            foreseen = type(error).__module__ == "fpbench.errors"
            reason = " ".join(lines) if foreseen else f"{type(error).__name__}: {lines[0]}"
            reply = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
        return reply | {"adapter_seconds": self.seconds - done}


def main(folder: Path) -> None:
    """Answer requests until there are no more."""
    limits = json.loads((folder / "limits.json").read_text())
    limit(limits["memory"], limits["file"])
    say(folder, 0, {"status": "done", "answer": {"confined": confine(folder)}, "adapter_seconds": 0.0})
    requests, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - it stays open
    child = Child(folder)
    for line in requests:
        number = int(line)
        request = json.loads((folder / f"request-{number}.json").read_text(encoding="utf-8"))
        say(folder, number, child.answer(request))


def say(folder: Path, number: int, reply: Reply) -> None:
    """Write a reply whole."""
    unfinished = folder / f".reply-{number}"
    unfinished.write_text(json.dumps(reply, default=str), encoding="utf-8")
    unfinished.replace(folder / f"reply-{number}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
