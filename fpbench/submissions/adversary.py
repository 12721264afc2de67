"""A submission as an adversary: queries and logits go to a child process, and what comes back is checked here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.errors import CellError, InputError
from fpbench.models.prompts import Rendered
from fpbench.submissions.folder import Submission, version_of
from fpbench.submissions.method import limits_for
from fpbench.submissions.process import ChildProcess
from fpbench.submissions.replies import LOGITS, Declaration, Prepared, Query, read_logits, validated
from fpbench.text import printable

PASSED = 32 * 2**20  # bytes of logits that go to the child at once

Prompts = Sequence[Sequence[int]]


def adversary_of(submission: Submission) -> type["SubmittedAdversary"]:
    """Return the adversary of a submission, under its name; InputError if its ``submission.toml`` is malformed."""
    manifest = submission.adversary
    attributes = {
        "name": manifest.adversary,
        "version": version_of(submission),
        "level": manifest.level,
        "pays": dict(manifest.pays),
        "dose": None if manifest.dose is None else manifest.dose.as_dose(),
        "needs": tuple(manifest.needs),
        "parts": tuple(manifest.parts),
        "submission": submission,
        "about": manifest.model_dump(mode="json", include={"authors", "paper", "licence", "adapted_by"}),
        "__doc__": manifest.credit,
    }
    return type("SubmittedAdversary", (SubmittedAdversary,), attributes)


class SubmittedAdversary(Adversary):
    """Attacks by a child process that runs the stranger's class; the child sees no weights of the stolen model."""

    submission: ClassVar[Submission]
    parts: ClassVar[Sequence[str]]  # "input", "sampler"
    about: ClassVar[Mapping[str, Any]]  # whose it is

    @classmethod
    def changes_queries(cls) -> bool:
        """Return whether it has an input part, as its ``submission.toml`` says."""
        return "input" in cls.parts

    @classmethod
    def changes_sampling(cls) -> bool:
        """Return whether it has a sampler part."""
        return "sampler" in cls.parts

    def prepare(self, context: AdversaryContext) -> None:
        """Have the child prepare it; all that are prepared for one model share a process.

        Raises:
            InputError: if the model comes from no checkpoint folder, whose tokenizer the child could load, too.
            CellError: if it fails, exceeds a limit, or is another than its ``submission.toml`` says.
        """
        super().prepare(context)
        self.child = self._child(context)
        answer = self.child.ask(
            "prepare",
            amount=None if self.dose is None else self.amount,
            decoding=asdict(context.decoding),
            seed=context.seed,
            instructions=list(context.instructions) if "instructions" in self.needs else [],
        )
        found = validated(Prepared, answer)
        self._number, self.steps = found.number, found.steps
        self.confinement = self.child.start().to_dict()

    def _child(self, context: AdversaryContext) -> ChildProcess:
        if context.checkpoint is None:
            raise InputError(
                f"adversary {self.name!r} is a submission, which runs in a process of its own: measure a checkpoint "
                f"under it with `fpbench submit run {self.name}` or `fpbench run --condition {self.name}`."
            )
        key = (SubmittedAdversary, self.submission.digest)
        if key not in context.kept:
            base, limits = context.checkpoint, limits_for(context.model)
            child = ChildProcess(self.submission, limits, base.folder, unconfined=base.loading.unconfined)
            context.closing.enter_context(child)
            declared = validated(Declaration, child.ask("meet", name=self.name))
            other = declared.differs(self.submission.adversary)
            if self.name not in declared.names:
                other = f"it registers {printable(', '.join(declared.names)) or 'nothing'}"
            if other is not None:
                raise CellError(f"adversary.py is not what submission.toml says: {other}.")
            child.ask(
                "serve",
                base=str(base.folder.resolve()),
                loading=asdict(base.loading),
                prompt=base.prompt,
                threads=torch.get_num_threads(),
            )
            context.kept[key] = child
        kept: ChildProcess = context.kept[key]
        return kept

    def input(self, text: str) -> Sequence[str] | None:
        """Ask the child for what the model is given in place of a query."""
        found = validated(Query, self.child.ask("input", number=self._number, text=text))
        if found.texts is None:
            return None
        both = zip(found.texts, found.rendered, strict=True)
        return [Rendered(each) if rendered else each for each, rendered in both]

    def sample(self, prompts: Prompts, prefixes: Prompts, logits: Tensor) -> Tensor:
        """Hand logits [n, V] to the child, so many rows at a time, and return those that it hands back.

        Raises:
            CellError: if it fails or hands back another number of tensors, another shape or precision.
        """
        rows = max(1, PASSED // (logits.shape[1] * 4))
        changed = []
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            given = logits[part].float().cpu().contiguous()
            self.child.ask(
                "sample",
                {LOGITS: save({LOGITS: given})},
                number=self._number,
                prompts=[list(each) for each in prompts[part]],
                prefixes=[list(each) for each in prefixes[part]],
            )
            changed.append(read_logits(self.child.changes(), given, self.name))
        return torch.cat(changed).to(logits.device, logits.dtype)
