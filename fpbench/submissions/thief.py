"""``fpbench submit check --adversary``: an adversary's files looked at, and its contract run in a child process."""

from functools import cached_property
from time import perf_counter

from fpbench.checks import Checklist, Finding
from fpbench.submissions.check import CONFINED, LIMITS, OF_RECORDS, Report
from fpbench.submissions.folder import OF_ADVERSARIES, Submission
from fpbench.submissions.process import REMEDY, ChildProcess
from fpbench.submissions.replies import Declaration, broken, promises, validated
from fpbench.text import printable


def check(submission: Submission, unconfined: bool = False) -> Report:
    """Look at every file; if there is nothing to find, run the contract of adversaries on the micro model.

    A child process alone runs it; ``unconfined`` lets it where this machine does not keep it from everything.
    """
    start = perf_counter()
    findings = OF_ADVERSARIES.examine(submission)
    if all(finding.passed for finding in findings):
        findings += OF_RECORDS.examine(submission)
    if any(not finding.passed for finding in findings):
        return Report(findings, perf_counter() - start)
    with ChildProcess(submission, LIMITS, unconfined=unconfined) as child:
        running = RunningThief(child)
        findings += OF_THIEF.examine(running) + running.promises
        return Report(findings, perf_counter() - start, child.adapter_seconds, child.confinement)


class RunningThief:
    """The adversary of a submission, in its child process."""

    def __init__(self, child: ChildProcess) -> None:
        """Ask nothing yet."""
        self.child, self.name, self.manifest = child, child.submission.name, child.submission.adversary
        self.promises: list[Finding] = []  # of the contract

    @cached_property
    def declaration(self) -> Declaration:
        """Return what its class declares; CellError if it cannot be imported."""
        return validated(Declaration, self.child.ask("meet", name=self.name))


OF_THIEF: Checklist[RunningThief] = Checklist()


@OF_THIEF.add(CONFINED, "a machine that keeps a submission from what is not its own", REMEDY)
def _confined(running: RunningThief) -> str | None:
    found = running.child.tried()
    return None if running.child.unconfined else found.unkept()


@OF_THIEF.add(
    "adversary",
    "an adversary.py that registers the adversary under the folder's name",
    "mend it; it runs alone in a process",
    needs=[CONFINED],
)
def _imports(running: RunningThief) -> str | None:
    found = running.declaration.names
    if running.name in found:
        return None
    return f'{printable(", ".join(found)) or "nothing"}: use @ADVERSARIES.register("{running.name}")'


@OF_THIEF.add(
    "one declaration",
    "the same version, level, parts, needs, payment and dose in adversary.py and submission.toml",
    "write the same in both files; a weights part takes an installed package (docs/submissions.md)",
    needs=["adversary"],
)
def _declaration(running: RunningThief) -> str | None:
    return running.declaration.differs(running.manifest)


@OF_THIEF.add("contract", "every promise of the contract kept", "see below", needs=["one declaration"])
def _contract(running: RunningThief) -> str | None:
    from fpbench.contract.adversary import CHECKS

    running.promises = promises(running.child.ask("promises", name=running.name), CHECKS, "the contract")
    return broken(running.promises)
