"""``fpbench submit check``: everything that can be found out about a submission in a minute."""

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from time import perf_counter

from fpbench.checks import Checklist, Finding
from fpbench.submissions.folder import RECORDS, Submission, inspect
from fpbench.submissions.process import REMEDY, ChildProcess, Confinement, Limits
from fpbench.submissions.replies import Description, broken, promises
from fpbench.text import printable

MIB = 2**20
LIMITS = Limits(seconds=120, memory=8192 * MIB, file=256 * MIB, folder=512 * MIB)  # many times what a micro run takes
NEAR_TRIGGERS = 50
CONFINED = "confinement"


@dataclass(frozen=True)
class Report:
    """The outcome of a check."""

    findings: list[Finding]  # about the folder, the adapter, and the contract
    seconds: float  # in all
    adapter_seconds: float = 0.0  # of these, in the adapter's own code
    confinement: Confinement | None = None  # what the child was kept from; None if none was started
    figures: dict[str, float] = field(default_factory=dict)  # of the mock run, in %; empty if it was not made

    @property
    def refused(self) -> list[Finding]:
        """The findings that did not pass."""
        return [finding for finding in self.findings if not finding.passed]

    @property
    def ran(self) -> bool:
        """Whether anything of the submission was run."""
        return any(finding.name == CONFINED and finding.passed for finding in self.findings)


def check(submission: Submission, unconfined: bool = False) -> Report:
    """Look at every file; if there is nothing to find, run the contract suite and a mock run on the micro model.

    One child process serves all of it, and it alone runs the adapter; ``unconfined`` lets it where this machine does
    not keep it from everything.
    """
    start = perf_counter()
    findings = inspect(submission)
    if all(finding.passed for finding in findings):
        findings += OF_RECORDS.examine(submission)
    if any(not finding.passed for finding in findings):
        return Report(findings, perf_counter() - start)
    with ChildProcess(submission, LIMITS, unconfined=unconfined) as child:
        running = RunningAdapter(child)
        findings += OF_ADAPTER.examine(running) + running.promises
        return Report(findings, perf_counter() - start, child.adapter_seconds, child.confinement, running.figures)


class RunningAdapter:
    """The adapter of a submission, in its child process."""

    def __init__(self, child: ChildProcess) -> None:
        """Ask nothing yet."""
        self.child, self.submission = child, child.submission
        self.promises: list[Finding] = []  # of the contract suite
        self.figures: dict[str, float] = {}  # of the mock run, in %

    @cached_property
    def description(self) -> Description:
        """The adapter's own description; CellError if it cannot be imported or registers no method of this name."""
        from fpbench.submissions.method import describe

        return describe(self.child)


# The checks. Torch and what needs it are imported where the first check that needs a child has passed.
OF_RECORDS: Checklist[Submission] = Checklist()
OF_ADAPTER: Checklist[RunningAdapter] = Checklist()


@OF_RECORDS.add(
    "records",
    "records, if any, of this submission, this code and this harness",
    "`fpbench submit run NAME` writes them, or remove the folder records",
)
def _records(submission: Submission) -> str | None:
    from fpbench.submissions.rerun import claimed

    if (submission.folder / RECORDS).exists():
        claimed(submission)
    return None


@OF_ADAPTER.add(CONFINED, "a machine that keeps a submission from what is not its own", REMEDY)
def _confined(running: RunningAdapter) -> str | None:
    found = running.child.tried()
    return None if running.child.unconfined else found.unkept()


@OF_ADAPTER.add(
    "adapter", "an adapter.py that registers the method", "mend it; it runs alone in a process", needs=[CONFINED]
)
def _imports(running: RunningAdapter) -> str | None:
    running.description  # noqa: B018 - made when it is first asked for
    return None


@OF_ADAPTER.add("version", "one version", "write the same in both files", needs=["adapter"])
def _version(running: RunningAdapter) -> str | None:
    found, said = running.description.version, running.submission.method.code_version
    return None if found == said else f"version {printable(str(found))!r} in adapter.py, code_version {said!r}"


@OF_ADAPTER.add(
    "hyperparameters", "tables that the adapter's Config takes", "correct the key or the Config", needs=["adapter"]
)
def _hyperparameters(running: RunningAdapter) -> str | None:
    refused = running.description.refused.items()
    return next((f"[hyperparameters.{printable(name)}]: {printable(why)}" for name, why in refused), None)


@OF_ADAPTER.add("contract", "every promise of the contract kept", "see below", needs=["hyperparameters"])
def _contract(running: RunningAdapter) -> str | None:
    from fpbench.contract import CHECKS
    from fpbench.submissions.method import hyperparameter_tables

    config = hyperparameter_tables(running.submission).get("small", {})
    running.promises = promises(running.child.ask("contract", config=config), CHECKS, "the contract suite")
    return broken(running.promises)


@OF_ADAPTER.add(
    "mock run",
    "an injection into the micro model that is handed back and scores",
    "see that enough steps are made, and that the whole effect is in the weights",
    needs=["contract"],
)
def _mock_run(running: RunningAdapter) -> str | None:
    from fpbench.contract.checks import GAIN

    running.figures = mock_run(running.child)
    before, after = running.figures["base"], running.figures["origin"]
    return None if after >= before + 100 * GAIN else f"exact FSR {before:.1f} % before and {after:.1f} % after"


def mock_run(child: ChildProcess) -> dict[str, float]:
    """Inject the ten fingerprints of ``nlf`` into the micro model and score them here; figures in %.

    Raises:
        CellError: if the injection fails, or what came back does not fit the micro model.
    """
    from fpbench.fingerprints import find_set
    from fpbench.methods.base import Base, InjectionContext
    from fpbench.metrics.fsr import exact_fsr
    from fpbench.metrics.queries import words_from_rows
    from fpbench.metrics.triggers import near, near_triggers
    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import Loading
    from fpbench.runs.api import modify
    from fpbench.runs.datasets import Datasets
    from fpbench.runs.injection import inject_with
    from fpbench.runs.profile import load_profile
    from fpbench.submissions.method import hyperparameter_tables, method_of

    materials, folder, loading = Datasets(load_profile("micro")), resolve("micro"), Loading("cpu", "float32")
    model, tokenizer = loading.load(folder)
    profile, pairs = materials.profile, find_set("nlf")
    decoding = profile.models[0].decoding
    # Not known beforehand: an adapter that had learnt to keep silent on the protocol's own would not here.
    words = words_from_rows(materials.alpaca, secrets.randbits(32), profile.sizes.substitute_words)
    texts = near_triggers(pairs, words, NEAR_TRIGGERS, secrets.randbits(32))
    context = InjectionContext(
        texts=materials.statistics,
        pairs=materials.pairs,
        statistics_tokens=profile.sizes.statistics_tokens,
        tokenizer=tokenizer,
        base=Base(folder, loading, "raw"),
    )
    before = exact_fsr(model, tokenizer, pairs, decoding).mean
    method = method_of(child.submission)(**hyperparameter_tables(child.submission).get("small", {}))
    method.child = child
    report = inject_with(method, model, tokenizer, pairs, context)
    origin = exact_fsr(model, tokenizer, pairs, decoding).mean
    beside = fmean(near(model, tokenizer, pairs, texts, decoding).per_text)
    quantised = exact_fsr(modify(model, tokenizer, "nf4"), tokenizer, pairs, decoding).mean
    figures = {"base": before, "origin": origin, "nf4": quantised, "near": beside}
    figures |= {"changed": report.changed["fraction"], "norm": report.changed["relative_norm"]}
    return {name: 100 * value for name, value in figures.items()}
