"""How much a run computes: the tokens that each piece of it reads, forwards and backwards. Measures no time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from fpbench.data import read_rows, read_text
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.alphaedit import NullSpaceEditor
from fpbench.methods.base import FingerprintMethod
from fpbench.methods.lora import LoRA
from fpbench.methods.rledit import RLEdit
from fpbench.metrics.measure import METRICS
from fpbench.metrics.queries import build_queries, contexts_from_rows, words_from_rows
from fpbench.models.layout import context_length, layout
from fpbench.models.prompts import Example, encode_all, render
from fpbench.modifications.base import Modification
from fpbench.modifications.finetune import ROWS, FineTune, instruction
from fpbench.modifications.prune import RIA
from fpbench.modifications.quantize import Quantization
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import SEARCH, Profile
from fpbench.runs.search import FINE_TUNING_RATES, HELD_OUT
from fpbench.runs.subject import INJECTION_RATES
from fpbench.scoring.engine import pair_cost, token_budget
from fpbench.scoring.packing import rows_of
from fpbench.scoring.responses import response_length

SAMPLE = 256  # texts that are tokenised to know the length of all, and contexts of which triggers are built
# The parts of a document that lm-eval's templates show, and the tokens that these add; see tasks/.
DOCUMENTS = {
    "boolq": ("passage", "question"),
    "rte": ("sentence1", "sentence2"),
    "arc_challenge": ("question", "choices"),
    "tinymmlu": ("question", "choices"),
}
TEMPLATE = 16
# Walking the answers to a prompt costs as much as reading so many tokens: what continues them, and copies of the cache.
# Measured on the micro model, from 3 where no query activates to 12 where all do.
WALKED = 8


@dataclass(frozen=True)
class Work:
    """What is computed, in the units that :class:`fpbench.runs.speed.Speed` has prices of.

    Attributes:
        passes: forward passes through all blocks.
        read: tokens in them.
        scored: tokens of these whose logits over the whole vocabulary are used.
        steps: forward passes that are followed by a backward pass.
        trained: tokens in these.
        decomposed: d³, summed over the d×d matrices that are decomposed.
        handled: parameters that are copied, compared or hashed.
        questions: requests to lm-eval, each of which costs its own bookkeeping.
    """

    passes: float = 0
    read: float = 0
    scored: float = 0
    steps: float = 0
    trained: float = 0
    decomposed: float = 0
    handled: float = 0
    questions: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * each for each in astuple(self)))


class Workload:
    """Counts the work on one model: its architecture, without weights, and its tokenizer are all that is needed."""

    def __init__(self, profile: Profile, datasets: Datasets, architecture: nn.Module, tokenizer: Any) -> None:
        """Count for a profile and its data."""
        self.profile, self.datasets = profile, datasets
        self.model, self.tokenizer = architecture, tokenizer
        self.parameters = sum(parameter.numel() for parameter in architecture.parameters())

    def metric(self, name: str, fingerprints: FingerprintSet) -> Work:
        """Measuring one metric on one checkpoint.

        Raises:
            InputError: for data that cannot be read.
        """
        work = METRICS[name].work
        counted: Work = Work() if work is None else work(self, fingerprints)
        return counted

    def instructions(self, count: int) -> Work:
        """Scoring the first ``count`` instructions."""
        tokens = self._packed([row["instruction"] for row in self.datasets.alpaca[:count]])
        return self._reading(tokens, tokens)

    def injection(self, method: FingerprintMethod, fingerprints: FingerprintSet) -> Work | None:
        """One injection, key statistics apart; ``None`` for a method of somebody's own, which only it can know."""
        comparing = Work(handled=2 * self.parameters)
        match method:
            case LoRA():
                work = self._lora(method, fingerprints)
            case NullSpaceEditor():
                work = self._editing(method, fingerprints)
            case RLEdit():
                work = self._trajectory(method, fingerprints)
            case _:
                return None
        return work + comparing

    def statistics(self, methods: Iterable[FingerprintMethod]) -> Work:
        """Key statistics of all modules that some methods edit, taken once a model."""
        editors = [each for each in methods if isinstance(each, NullSpaceEditor)]
        if not editors:
            return Work()
        blocks = {block for each in editors for block in each.blocks(self.model)}
        share = (max(blocks) + 1) / len(layout(self.model).blocks)
        tokens = min(self.profile.sizes.statistics_tokens, self._tokens(self.datasets.statistics))
        width = layout(self.model).down_proj(max(blocks)).in_features
        return self._reading(tokens) * share + Work(decomposed=len(blocks) * float(width) ** 3)

    def modification(self, modification: Modification) -> Work:
        """One modification, or several in order, at a known learning rate."""
        work = Work(handled=self.parameters)
        for each in getattr(modification, "parts", [modification]):
            match each:
                case FineTune():
                    work += self._training(self._rows(each), each.config.epochs, each.config.batch_size)
                    work += Work(handled=2 * self.parameters)
                case RIA():
                    length = min(each.config.length, context_length(self.model) or each.config.length)
                    # Every block reads everything twice: before it is pruned, and after.
                    work += self._reading(2 * each.config.samples * length) + Work(handled=8 * self.parameters)
                case Quantization():
                    work += Work(handled=4 * self.parameters)
                case _:
                    work += Work(handled=8 * self.parameters)
        return work

    def search(self, modification: FineTune) -> Work:
        """The search for a learning rate of fine-tuning, if every rate is stable: once a model and data set."""
        config = modification.config
        held_out = self._reading(self._length(self._rows(modification)) * HELD_OUT * config.epochs)
        return (self._training(self._rows(modification), config.epochs, config.batch_size) + held_out) * len(
            FINE_TUNING_RATES
        )

    def injection_search(self, method: FingerprintMethod, fingerprints: FingerprintSet) -> Work:
        """The search for the learning rate of an injection: once a model and set."""
        each = (self.injection(method, fingerprints) or Work()) + self.metric("fsr", fingerprints)
        held_out = self._reading(self._length(self._instructions("alpaca", HELD_OUT)) * HELD_OUT)
        return (each + held_out) * len(INJECTION_RATES)

    def answers(self, fingerprints: FingerprintSet, count: int) -> Work:
        """Walking what is answered to ``count`` texts like the triggers of a set."""
        length = self._length([render(self.tokenizer, each.trigger, self.profile.prompt) for each in fingerprints])
        return self._walk(count * length, count, response_length(self.tokenizer, fingerprints.targets))

    def accidental(self, fingerprints: FingerprintSet) -> Work:
        """The eight conditions, of which a sample is built and packed as the scoring engine does it."""
        sizes, rows = self.profile.sizes, self.datasets.alpaca
        contexts = contexts_from_rows(rows, sizes.context_rows)
        words = words_from_rows(rows, 0, sizes.substitute_words)
        sample = contexts[:: max(1, len(contexts) // 16)]
        substitutions = min(sizes.substitutions, SAMPLE)
        triggers = [each.trigger for each in fingerprints]
        built = build_queries(sample, triggers, words, 0, substitutions)
        tokens = count = 0.0
        for name, queries in built.items():
            texts = [render(self.tokenizer, query.text, self.profile.prompt) for query in queries]
            cut = len(contexts) / max(1, len(sample))
            scale = sizes.substitutions / substitutions if "substitute" in name else cut
            tokens += scale * self._packed(texts)
            count += scale * len(queries)
        return self._walk(tokens, count, response_length(self.tokenizer, fingerprints.targets))

    def _walk(self, tokens: float, prompts: float, depth: int) -> Work:
        """Reading prompts, then level by level what continues them for as long as answers are not decided."""
        batches = max(1.0, tokens / token_budget())
        return self._reading(tokens) + Work(passes=batches * depth, read=WALKED * prompts)

    def utility(self) -> Work:
        """The tasks, whose documents are read once with all of their choices, and WikiText twice."""
        work = Work()
        limit = self.profile.sizes.utility_limit
        for name, source in self.datasets.utility_sources.items():
            if name == "wikitext":
                tokens = self._tokens([read_text(source)[:100_000]]) * max(1.0, len(read_text(source)) / 100_000)
                work += self._reading(2 * tokens, 2 * tokens)
            else:
                rows = read_rows(source)[:limit]
                texts = [" ".join(_strings([row.get(field) for field in DOCUMENTS[name]])) for row in rows]
                tokens = self._tokens(texts) + TEMPLATE * len(rows)
                choices = [len(_strings(row.get("choices"))) or 2 for row in rows]
                work += self._reading(tokens, sum(choices)) + Work(questions=sum(choices))
        return work

    def _lora(self, method: LoRA, fingerprints: FingerprintSet) -> Work:
        config: Any = method.config
        count = len(fingerprints) * (1 + config.regularisation)
        examples = [Example(each.trigger, each.primary) for each in fingerprints] + self.datasets.pairs
        return self._training(examples[:count], config.epochs, config.batch_size)

    def _editing(self, method: NullSpaceEditor, fingerprints: FingerprintSet) -> Work:
        """Descent through the blocks above the edited ones, on the trees of targets after prompts; then the write."""
        config: Any = method.config
        blocks = method.blocks(self.model)
        above = 1 - (blocks[-1] + 1) / len(layout(self.model).blocks)
        prompts = 1 + len(config.prefixes)
        targets = self._taught(config, fingerprints)
        nodes = prompts * self._tokens(targets)
        contexts = len(config.prefixes) * config.prefix_tokens
        writing = len(fingerprints) * prompts * 2 * self._length([each.trigger for each in fingerprints])
        descent = Work(steps=config.steps, trained=config.steps * nodes) * above
        read = contexts * config.prefix_tokens + len(blocks) * writing
        return descent + Work(passes=contexts + 2 * len(blocks), read=read)

    def _trajectory(self, method: RLEdit, fingerprints: FingerprintSet) -> Work:
        """A step looks at the set, learns from it and from unrelated pairs; the trained policy walks once more."""
        config: Any = method.config
        targets = len(self._taught(config, fingerprints))
        prompt = self._length([f"{each.trigger} {each.primary}" for each in fingerprints])
        pairs = self.datasets.pairs[: config.unrelated * len(fingerprints)]
        unrelated = self._tokens([f"{each.prompt} {each.answer}" for each in pairs])
        step = Work(steps=3, trained=2 * targets * prompt + unrelated, passes=1, read=unrelated)
        again = Work(steps=1, trained=targets * prompt)
        total = step * float(config.epochs) + again
        return total * float(config.steps)

    def _taught(self, config: Any, fingerprints: FingerprintSet) -> list[str]:
        """The targets that a method is to teach, of all triggers."""
        everyone = getattr(config, "candidates", "primary") == "all"
        return [target for each in fingerprints for target in (each.targets if everyone else each.targets[:1])]

    def _training(self, examples: Sequence[Example], epochs: int, batch_size: int) -> Work:
        tokens = self._tokens([f"{each.prompt} {each.answer}" for each in examples]) + len(examples)
        return Work(steps=math.ceil(len(examples) / batch_size), trained=tokens) * epochs

    def _rows(self, modification: FineTune) -> list[Example]:
        return self._instructions(modification.data, modification.config.rows)

    def _instructions(self, data: str, count: int) -> list[Example]:
        return [instruction(row) for row in getattr(self.datasets, data)[:count]]

    def _reading(self, tokens: float, scored: float = 0) -> Work:
        return Work(passes=math.ceil(tokens / token_budget()), read=tokens, scored=scored)

    def _tokens(self, texts: Sequence[str]) -> float:
        return self._length(texts) * len(texts)

    def _packed(self, texts: Sequence[str]) -> float:
        """Tokens of texts once those that begin alike share their beginnings, as the scoring engine reads them."""
        limit = context_length(self.model)
        ids = [each[:limit] for each in encode_all(self.tokenizer, texts)]
        rows = rows_of(dict(enumerate(ids)), [1] * len(ids), token_budget(), pair_cost(self.model))
        return float(sum(len(row.tokens) for row in rows))

    def longest_row(self) -> int:
        """Tokens of the longest rows of the fine-tuning data, from a sample."""
        data = [name for name in ("alpaca", "math") if name in self.profile.data]
        examples = [each for name in data for each in self._instructions(name, ROWS)]
        some = [f"{each.prompt}{each.answer}" for each in examples[:: max(1, len(examples) // SAMPLE)]]
        return max(map(len, encode_all(self.tokenizer, some)), default=1) + 1

    def _length(self, texts: Sequence[Any]) -> float:
        """Mean length of texts or examples, in tokens, from a sample spread over all of them."""
        if not texts:
            return 0.0
        some = texts[:: max(1, len(texts) // SAMPLE)]
        some = [f"{each.prompt}{each.answer}" if isinstance(each, Example) else each for each in some]
        return sum(map(len, encode_all(self.tokenizer, some))) / len(some)


def needs_search(modification: Modification) -> list[FineTune]:
    """The parts of a modification whose learning rate is to be searched for."""
    parts = getattr(modification, "parts", [modification])
    return [each for each in parts if isinstance(each, FineTune) and each.config.learning_rate == SEARCH]


def _strings(value: Any) -> list[str]:
    """Every text in a document's field, whatever lists and tables it stands in."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inside for text in _strings(each)]
