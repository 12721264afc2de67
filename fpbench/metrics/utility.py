"""Harmlessness: accuracy on four tasks and WikiText word perplexity, scored by lm-eval (protocol §5)."""

import contextlib
import copy
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpbench.data import digest
from fpbench.errors import CellError, InputError
from fpbench.metrics.lm import PrefixSharingLM

ACCURACY_TASKS = ("boolq", "rte", "arc_challenge", "tinymmlu")
TASKS = (*ACCURACY_TASKS, "wikitext")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """One multiple-choice task: the choice of greatest summed log-likelihood against the gold one.

    Attributes:
        correct: one entry an example, in document order, for paired tests.
        correct_normalized: the same by log-likelihood per character (``acc_norm``), where the task reports it.
        truncated: examples of which a prompt was cut from the left to fit the model's window.
        digest: SHA-256 of the data, see :func:`fpbench.data.digest`.
    """

    correct: tuple[bool, ...]
    correct_normalized: tuple[bool, ...] | None
    truncated: int
    digest: str

    @property
    def n(self) -> int:
        """Return the number of examples."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Return the fraction of examples answered correctly."""
        return sum(self.correct) / self.n

    @property
    def accuracy_normalized(self) -> float | None:
        """Return the same by length-normalised log-likelihood, or None where the task does not report it."""
        return None if self.correct_normalized is None else sum(self.correct_normalized) / self.n


@dataclass(frozen=True)
class Perplexity:
    """Rolling log-likelihood of documents.

    Attributes:
        log_likelihoods: nats, one a document, in document order.
        words: whitespace-separated words of each, counted before detokenising.
        digest: SHA-256 of the data, see :func:`fpbench.data.digest`.
    """

    log_likelihoods: tuple[float, ...]
    words: tuple[int, ...]
    digest: str

    @property
    def word_perplexity(self) -> float:
        """Return exp(−Σ log-likelihood / Σ words)."""
        return math.exp(-sum(self.log_likelihoods) / sum(self.words))


@dataclass(frozen=True)
class Utility:
    """Accuracies by task, and WikiText perplexity where it was measured.

    Attributes:
        max_length: window in tokens; perplexities of different windows are not comparable.
    """

    tasks: Mapping[str, Accuracy]
    wikitext: Perplexity | None
    max_length: int

    @property
    def accuracy(self) -> float | None:
        """Return the plain mean of the four accuracies, or None when not all four were measured."""
        if set(self.tasks) != set(ACCURACY_TASKS):
            return None
        return sum(task.accuracy for task in self.tasks.values()) / len(ACCURACY_TASKS)

    @property
    def word_perplexity(self) -> float | None:
        """Return lm-eval's WikiText word perplexity, or None when it was not measured."""
        return None if self.wikitext is None else self.wikitext.word_perplexity

    @property
    def examples(self) -> dict[str, tuple[bool, ...]]:
        """Return the correctness of every example by task, in document order."""
        return {name: task.correct for name, task in self.tasks.items()}


def utility(
    model: Any,
    tokenizer: Any,
    sources: Mapping[str, str],
    *,
    limit: int | None = None,
    pages: int | None = None,
    max_length: int = 2048,
) -> Utility:
    """Score a model, zero-shot, on the tasks that have a source. Nothing in it is random or cached.

    Args:
        model: a causal language model in memory; it is put in eval mode.
        tokenizer: used with its own BOS; not changed.
        sources: data source (see :mod:`fpbench.data`) by task name, out of :data:`TASKS`.
        limit: score only the first so many documents of each accuracy task.
        pages: score only the first so many pages of WikiText.
        max_length: longest window in tokens; the model's context bounds it further.

    Raises:
        InputError: if a task is unknown, or its data cannot be read or do not fit its template.
        CellError: if the model's log-likelihoods are not finite.
    """
    unknown = [name for name in sources if name not in TASKS]
    if unknown or not sources:
        raise InputError(
            f"utility tasks: expected some of {', '.join(TASKS)}, found {', '.join(unknown) or 'none'}; "
            "correct the names in the profile"
        )
    for each in (limit, pages):
        if each is not None and each < 1:
            raise InputError(
                f"utility limit: expected a positive number of documents or none, found {each}; correct it"
            )
    with _quiet():
        tasks = {name: _load(name, source) for name, source in sources.items()}
        scorer = _scorer(model, tokenizer, max_length)
        limits = dict.fromkeys(ACCURACY_TASKS, limit) | {"wikitext": pages}
        samples = {name: _samples(scorer, name, task, limits[name]) for name, task in tasks.items()}
        accuracies = {
            name: _accuracy(scorer, samples[name], digest(sources[name])) for name in ACCURACY_TASKS if name in samples
        }
    perplexity = None
    if "wikitext" in samples:
        log_likelihoods, words = zip(*(sample["word_perplexity"] for sample in samples["wikitext"]), strict=True)
        perplexity = Perplexity(log_likelihoods, words, digest(sources["wikitext"]))
    return Utility(accuracies, perplexity, scorer.max_length)


def task_folder() -> Path:
    """Find the lm-eval task files, inside an installed package or at the root of a source checkout.

    Raises:
        InputError: if neither place has them.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "tasks", package.parent / "tasks"):
        if (folder / "fpbench_boolq.yaml").is_file():
            return folder
    raise InputError(f"task files: expected a folder tasks in or beside {package}, found none; reinstall fpbench")


def _scorer(model: Any, tokenizer: Any, max_length: int) -> Any:
    """Wrap the model for lm-eval, leaving model and tokenizer as they are."""
    from lm_eval.models.utils import resolve_max_length

    window = min(max_length, resolve_max_length(model.config, tokenizer))
    # lm-eval ties output to input embeddings once more, undoing a change to one of them, and sets a padding token.
    model.tie_weights = lambda: None
    try:
        return PrefixSharingLM(model, tokenizer=copy.deepcopy(tokenizer), max_length=window)
    finally:
        del model.tie_weights


def _load(name: str, source: str) -> Any:
    """Build lm-eval's task on the given source and check every document against the template."""
    from jinja2 import TemplateError
    from lm_eval.tasks import TaskManager

    full_name = f"fpbench_{name}"
    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata={"source": source})
    row = 1
    try:
        task = manager.load(full_name)["tasks"][full_name]
        for document in task.eval_docs if name in ACCURACY_TASKS else ():
            # lm-eval itself would score a gold answer outside the choices as a wrong one.
            gold, choices = task.doc_to_target(document), task.doc_to_choice(document)
            if not isinstance(gold, int) or not 0 <= gold < len(choices):
                raise ValueError(f"gold answer {gold!r} is none of the {len(choices)} choices")
            row += 1
    except (ValueError, TypeError, LookupError, TemplateError) as error:
        raise InputError(
            f"data source {source!r}, row {row}: expected a row of {name}, found: {error}; correct the row"
        ) from error
    return task


def _samples(scorer: Any, name: str, task: Any, limit: int | None) -> list[dict[str, Any]]:
    """Run one task; return one sample a document, in document order."""
    from lm_eval.evaluator import evaluate

    try:
        results = evaluate(scorer, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
    except OverflowError as error:
        raise CellError(f"utility {name}: the perplexity is beyond floating point; the model is broken") from error
    samples: list[dict[str, Any]] = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    scores = [response[0] if name in ACCURACY_TASKS else response for s in samples for response in s["filtered_resps"]]
    if not all(map(math.isfinite, scores)):
        raise CellError(f"utility {name}: some log-likelihoods are not finite; the model is broken")
    return samples


def _accuracy(scorer: Any, samples: list[dict[str, Any]], data: str) -> Accuracy:
    limit = scorer.max_length + 1  # the last token is scored but never read
    prompts = [[context + continuation for context, continuation in sample["arguments"]] for sample in samples]
    longest = [max(map(len, scorer.tokenizer(texts)["input_ids"])) for texts in prompts]
    return Accuracy(
        correct=tuple(sample["acc"] == 1 for sample in samples),
        correct_normalized=tuple(sample["acc_norm"] == 1 for sample in samples) if "acc_norm" in samples[0] else None,
        truncated=sum(length > limit for length in longest),
        digest=data,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's and its libraries' bars and warnings off the terminal; they go to the debug log."""
    captured = io.StringIO()
    talkative = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [source.level for source in talkative]
    for source in talkative:
        source.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(captured):
            yield
    finally:
        for source, level in zip(talkative, levels, strict=True):
            source.setLevel(level)
        logger.debug("lm-eval: %s", captured.getvalue())
