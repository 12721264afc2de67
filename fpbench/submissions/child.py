"""The child process that runs a submitted adapter. Everything it says is a stranger's word.

It reads a number a line from standard input, finds ``request-N.json`` in the folder that it is shown, does it, and
answers in a line of JSON. Of what else it leaves only the file of changed weights is read. Both are open already when
it starts: it can make no file where its parent would look for one.

Torch and the rest of fpbench are imported after :mod:`fpbench.submissions.confinement` has bound this process.
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

from fpbench.submissions.confinement import Targets, filter_calls, landlock, limit, stay_in_family, tried

OF_METHODS = ("describe", "contract", "load", "draw_set", "inject")
OF_ADVERSARIES = ("meet", "promises", "serve", "prepare", "input", "sample")
VERBS = (*OF_METHODS, *OF_ADVERSARIES)


def main(folder: Path, replies: int, changes: int) -> None:
    """Answer requests until there are no more.

    Args:
        folder: with the submission, the limits and the requests.
        replies: open file to which replies are written.
        changes: open file to which changed weights are written.
    """
    told = json.loads((folder / "limits.json").read_text())
    targets = Targets(**told["targets"])
    limit(**told["limits"])
    if told["alone"]:  # of namespaces, the first process does both
        stay_in_family()
    confined = {"landlock": landlock(targets.private), "filter": filter_calls()}
    _reply(replies, {"status": "done", "answer": confined | {"holds": tried(targets)}, "adapter_seconds": 0.0})
    requests, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - it stays open
    runner = AdapterRunner(folder, changes)
    for line in requests:
        request = json.loads((folder / f"request-{int(line)}.json").read_text(encoding="utf-8"))
        _reply(replies, runner.answer(request))


def _reply(replies: int, reply: dict[str, Any]) -> None:
    """Write a reply, which is one line."""
    with open(replies, "w", encoding="utf-8", closefd=False) as file:
        file.write(json.dumps(reply, default=str) + "\n")


class AdapterRunner:
    """Runs the adapter of one submission."""

    def __init__(self, folder: Path, changes: int) -> None:
        """Read the adapter in ``folder``, and write changed weights to the open file ``changes``."""
        self.folder, self.changes = folder, changes
        self.seconds = 0.0  # spent in the adapter's code
        self._name: str | None = None
        self._thieves: list[Any] = []  # adversaries that were prepared

    def describe(self, name: str, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Import the adapter; return the names it registers, its version and what its Config refuses."""
        from fpbench.errors import InputError
        from fpbench.registry import METHODS

        known = set(METHODS.names())
        self._import("adapter")
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
        """Load the base that :meth:`inject` edits, and every module of ours that it takes, before a clock runs."""
        import torch

        from fpbench.contract import trials  # noqa: F401
        from fpbench.models.loading import Loading
        from fpbench.runs import injection  # noqa: F401

        torch.set_num_threads(threads)
        self.device = loading["device"]
        self.model, self.tokenizer = Loading(**loading).load(Path(base))
        return {}

    def draw_set(self, config: dict[str, Any], seed: int, prompt: str, count: int) -> dict[str, Any]:
        """Return a set of the adapter's own for the base that was loaded."""
        from fpbench.methods.base import InjectionContext
        from fpbench.models.prompts import render
        from fpbench.runs.injection import create_method

        assert self._name is not None, "described first"
        context = InjectionContext(
            seed=seed,
            device=self.device,
            render=lambda trigger: render(self.tokenizer, trigger, prompt),
            tokenizer=self.tokenizer,
        )
        method = create_method(self._name, self.model, config)
        return {
            "fingerprints": [each.as_json() for each in method.draw_set(self.model, self.tokenizer, count, context)]
        }

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
        self._hand_back(report.delta.to_bytes())
        return {"seconds": dict(report.seconds), "peak_memory": report.peak_memory}

    def _hand_back(self, content: bytes) -> None:
        with open(self.changes, "r+b", closefd=False) as file:
            file.seek(0)
            file.write(content)
            file.truncate()

    def meet(self, name: str) -> dict[str, Any]:
        """Import the adversary of a submission; return the names it registers, and what the one named declares."""
        from fpbench.registry import ADVERSARIES
        from fpbench.submissions.served import declared, without_model

        known = set(ADVERSARIES.names())
        self._import("adversary")
        names = [each for each in ADVERSARIES.names() if each not in known]
        if name not in names:
            return {"names": names}
        self._thief = without_model(ADVERSARIES.get(name))
        return {"names": names} | declared(self._thief)

    def promises(self, name: str) -> dict[str, Any]:
        """Run the contract of adversaries on the one that was met."""
        from fpbench.contract.adversary import CHECKS, Trials

        return {"findings": [dataclasses.asdict(finding) for finding in CHECKS.examine(Trials(self._thief))]}

    def serve(self, base: str, loading: dict[str, Any], prompt: str, threads: int) -> dict[str, Any]:
        """Get ready to serve the adversary that was met, with what a thief may have of a base."""
        import torch

        from fpbench.submissions.served import Served

        torch.set_num_threads(threads)
        self._served = Served(Path(base), loading, prompt)
        return {}

    def prepare(
        self, amount: float | None, decoding: dict[str, Any], seed: int, instructions: list[str]
    ) -> dict[str, Any]:
        """Prepare the adversary at a dose; return its number, and from which step on its sampler does nothing."""
        thief = self._thief(amount)
        thief.prepare(self._served.context(decoding, seed, instructions))
        self._thieves.append(thief)
        return {"number": len(self._thieves) - 1, "steps": thief.steps}

    def input(self, number: int, text: str) -> dict[str, Any]:
        """Return what one that was prepared makes of a query."""
        from fpbench.submissions.served import queries

        return queries(self._thieves[number].input(text))

    def sample(self, number: int, prompts: list[list[int]], prefixes: list[list[int]], logits: str) -> dict[str, Any]:
        """Let one that was prepared change the logits [n, V] of a file, and write them as the weights are written."""
        from safetensors.torch import load, save

        ((name, given),) = load((self.folder / logits).read_bytes()).items()
        changed = self._thieves[number].sample(prompts, [tuple(each) for each in prefixes], given)
        self._hand_back(save({name: changed.contiguous()}))
        return {}

    def _import(self, module: str) -> None:
        start = perf_counter()
        sys.path.insert(0, str(self.folder / "submission"))
        try:
            importlib.import_module(module)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
