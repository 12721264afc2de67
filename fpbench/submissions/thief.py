"""``fpbench submit check --adversary``: an adversary's files looked at, and its contract run in a child process."""

from time import perf_counter

from fpbench.adversaries.conditions import known
from fpbench.checks import Checklist, Finding
from fpbench.submissions import folder
from fpbench.submissions.check import CONFINED, LIMITS, Report
from fpbench.submissions.folder import Submission
from fpbench.submissions.manifest import NAME
from fpbench.submissions.process import REMEDY, ChildProcess
from fpbench.submissions.replies import Description, broken, promises, validated
from fpbench.text import printable

REQUIRED = (folder.THIEF, "README.md")
ALIKE = ("inside", "file names", "pickle", "kinds", "sizes", "texts", "readme")  # checks that are those of a method


def check(submission: Submission, unconfined: bool = False) -> Report:
    """Look at every file; if there is nothing to find, run the contract of adversaries on the micro model.

    A child process alone runs it; ``unconfined`` lets it where this machine does not keep it from everything.
    """
    start = perf_counter()
    findings = OF_FILES.examine(submission)
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
        self.child, self.name = child, child.submission.name
        self.promises: list[Finding] = []  # of the contract


# The checks of files: what an adversary consists of, and those of a method that have to do with files alone.
OF_FILES: Checklist[Submission] = Checklist()
OF_THIEF: Checklist[RunningThief] = Checklist()


@OF_FILES.add("required", f"the files {', '.join(REQUIRED)}", "`fpbench submit new NAME --adversary` writes them")
def _required(submission: Submission) -> str | None:
    missing = [name for name in REQUIRED if not (submission.folder / name).is_file()]
    return f"no {missing[0]}" if missing else None


for _each in folder.CHECKS:
    if _each.name in ALIKE:
        OF_FILES.add(_each.name, _each.expected, _each.remedy, _each.needs)(_each.examine)


@OF_FILES.add("name", "a name of its own, as conditions are written", "rename the folder and the adversary", ["inside"])
def _name(submission: Submission) -> str | None:
    if not NAME.fullmatch(submission.name):
        return printable(repr(submission.name))
    return f"{submission.name!r}, which is taken" if submission.name in known() else None


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
    found = validated(Description, running.child.ask("meet", name=running.name))
    if running.name in found.names:
        return None
    return f'{printable(", ".join(found.names)) or "nothing"}: use @ADVERSARIES.register("{running.name}")'


@OF_THIEF.add("contract", "every promise of the contract kept", "see below", needs=["adversary"])
def _contract(running: RunningThief) -> str | None:
    from fpbench.contract.adversary import CHECKS

    running.promises = promises(running.child.ask("promises", name=running.name), CHECKS, "the contract")
    return broken(running.promises)
