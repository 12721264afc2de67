"""The work of a run: the tokens that each piece of it reads, forwards and backwards. Measures no time."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from fpbench.data import read_rows, read_text, read_texts
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod
from fpbench.metrics.lettered import OF, questions
from fpbench.metrics.measure import METRICS
from fpbench.metrics.queries import build_queries, contexts_from_rows, words_from_rows
from fpbench.models.costs import SAMPLE, Counter, Work
from fpbench.models.layout import context_length, inputs, layout
from fpbench.models.prompts import Example, encode_all, render
from fpbench.modifications.base import Modification
from fpbench.modifications.finetune import ROWS, FineTune, instruction
from fpbench.runs.datasets import Datasets
from fpbench.runs.profile import Profile
from fpbench.runs.search import FINE_TUNING_RATES, HELD_OUT
from fpbench.runs.subject import INJECTION_RATES
from fpbench.scoring.engine import pair_cost, token_budget
from fpbench.scoring.packing import rows_of
from fpbench.scoring.responses import response_length
from fpbench.text import canonical

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
LETTER = 3  # tokens after which an answer is mostly known to be a letter, or none


class Workload(Counter):
    """Counts the work of a profile on one model, from its architecture, without weights, and its tokenizer."""

    def __init__(self, profile: Profile, datasets: Datasets, architecture: nn.Module, tokenizer: Any) -> None:
        """Count nothing yet."""
        super().__init__(architecture, tokenizer)
        self.profile, self.datasets = profile, datasets
        self._parts: dict[str, Work] = {}

    def metric(self, name: str, fingerprints: FingerprintSet) -> Work:
        """Return the work of measuring one metric on one checkpoint; :class:`InputError` for unreadable data."""
        work = METRICS[name].work
        counted: Work = Work() if work is None else work(self, fingerprints)
        return counted

    def injection(self, method: FingerprintMethod, fingerprints: FingerprintSet) -> Work | None:
        """Return the work of one injection without key statistics; ``None`` where the method does not know it."""
        pairs = self.datasets.pairs if "zsre" in self.profile.data else ()  # as the injection is given them
        work = method.work(self, fingerprints, pairs)
        return None if work is None else work + Work(handled=2 * self.parameters)

    def statistics(self, methods: Iterable[FingerprintMethod]) -> Work:
        """Return the work of the key statistics that some methods ask for, computed once a model."""
        modules = {self.model.get_submodule(name) for each in methods for name in each.statistics_of(self.model)}
        if not modules:
            return Work()
        blocks = layout(self.model).blocks
        # The text is read up to the last block that holds one of them.
        last = max(number for number, block in enumerate(blocks) if modules & {*block.modules()})
        tokens = min(self.profile.sizes.statistics_tokens, self.tokens(self.datasets.statistics))
        cubes: float = sum(float(inputs(each)) ** 3 for each in modules)
        return self._reading(tokens) * ((last + 1) / len(blocks)) + Work(decomposed=cubes)

    def modification(self, modification: Modification) -> Work:
        """Return the work of a modification, or of several in order, at a known learning rate."""
        return sum((self._part(each) for each in modification.parts), Work(handled=self.parameters))

    def _part(self, part: Modification) -> Work:
        known = canonical([part.name, part.config.model_dump(mode="json"), str(part.amount)])
        if known not in self._parts:  # else it was counted for another checkpoint
            self._parts[known] = part.work(self, self.datasets.rows(part))
        return self._parts[known]

    def search(self, modification: FineTune) -> Work:
        """Return the work of searching the rate of fine-tuning, if all are stable: once a model and data set."""
        config = modification.config
        rows = self._instructions(modification.source, config.rows)
        held_out = self._reading(self.length(rows) * HELD_OUT * config.epochs)
        return (self.training(rows, config.epochs, config.batch_size) + held_out) * len(FINE_TUNING_RATES)

    def injection_search(self, method: FingerprintMethod, fingerprints: FingerprintSet) -> Work:
        """Return the work of searching the learning rate of an injection: once a model and set."""
        each = (self.injection(method, fingerprints) or Work()) + self.metric("fsr", fingerprints)
        held_out = self._reading(self.length(self._instructions("alpaca", HELD_OUT)) * HELD_OUT)
        return (each + held_out) * len(INJECTION_RATES)

    # The work of single metrics, as their entries in METRICS ask for it.

    def instructions(self, count: int) -> Work:
        """Return the work of scoring the first ``count`` instructions."""
        tokens = self._packed([row["instruction"] for row in self.datasets.alpaca[:count]])
        return self._reading(tokens, tokens)

    def answers(self, fingerprints: FingerprintSet, count: int) -> Work:
        """Return the work of walking what is answered to ``count`` texts like the triggers of a set."""
        length = self.length([render(self.tokenizer, each.trigger, self.profile.prompt) for each in fingerprints])
        return self._walk(count * length, count, response_length(self.tokenizer, fingerprints.targets))

    def accidental(self, fingerprints: FingerprintSet) -> Work:
        """Return the work of the eight trigger conditions, from a sample packed as the scoring engine does it."""
        sizes, rows = self.profile.sizes, self.datasets.alpaca
        contexts = contexts_from_rows(rows, sizes.context_rows)
        words = self._words
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

    def utility(self) -> Work:
        """Return the work of the tasks, each document read once with all of its choices, and WikiText twice."""
        work = Work()
        limit = self.profile.sizes.utility_limit
        for name, source in self.datasets.utility_sources.items():
            if name == "wikitext":
                sizes, text, pages = self.profile.sizes, read_text(source), read_texts(source)
                tokens = self.tokens([text[:100_000]]) * max(1.0, len(text) / 100_000)
                windows, first = sizes.perplexity_windows, sizes.perplexity_pages
                windowed = min(tokens, windows * sizes.perplexity_window if windows else tokens)
                paged = tokens * min(1.0, first / len(pages) if first else 1.0)
                work += self._reading(windowed + paged, windowed + paged)
            else:
                rows = read_rows(source)[:limit]
                texts = [" ".join(_strings([row.get(field) for field in DOCUMENTS[name]])) for row in rows]
                tokens = self.tokens(texts) + TEMPLATE * len(rows)
                choices = [len(_strings(row.get("choices"))) or 2 for row in rows]
                work += self._reading(tokens, sum(choices)) + Work(questions=sum(choices))
                if name == OF:  # once more, answered by a letter
                    prompts = [each.prompt for each in questions(source, limit)]
                    work += self._walk(self.tokens(prompts), len(prompts), LETTER)
        return work

    def price(self) -> Work:
        """Return the work of pricing the conditions of one set of weights: each item read once for all of them."""
        items = self.datasets.price_items
        instructions = [f"{each.prompt} {each.answer}" for each in items.instructions]
        answers = [each.prompt for each in (*items.answers, *(question for question, _ in items.letters))]
        read = self.tokens(instructions) + self.tokens(answers)
        windows = (items.windows or 0) * items.window or self.tokens([items.text])
        return self._reading(read + windows, read + windows)

    def longest_row(self) -> int:
        """Return the tokens of the longest rows of the fine-tuning data, from a sample."""
        data = [name for name in ("alpaca", "math") if name in self.profile.data]
        examples = [each for name in data for each in self._instructions(name, ROWS)]
        some = [f"{each.prompt}{each.answer}" for each in examples[:: max(1, len(examples) // SAMPLE)]]
        return max(map(len, encode_all(self.tokenizer, some)), default=1) + 1

    @cached_property
    def _words(self) -> list[str]:
        return words_from_rows(self.datasets.alpaca, 0, self.profile.sizes.substitute_words)

    def _instructions(self, data: str, count: int) -> list[Example]:
        return [instruction(row) for row in getattr(self.datasets, data)[:count]]

    def _walk(self, tokens: float, prompts: float, depth: int) -> Work:
        """Read prompts, then level by level what continues them for as long as answers are not decided."""
        batches = max(1.0, tokens / token_budget())
        return self._reading(tokens) + Work(passes=batches * depth, read=WALKED * prompts)

    def _reading(self, tokens: float, scored: float = 0) -> Work:
        return Work(passes=math.ceil(tokens / token_budget()), read=tokens, scored=scored)

    def _packed(self, texts: Sequence[str]) -> float:
        """Return the tokens of texts that share their beginnings, as the scoring engine reads them."""
        limit = context_length(self.model)
        ids = [each[:limit] for each in encode_all(self.tokenizer, texts)]
        rows = rows_of(dict(enumerate(ids)), [1] * len(ids), token_budget(), pair_cost(self.model))
        return float(sum(len(row.tokens) for row in rows))


def needs_search(modification: Modification) -> list[FineTune]:
    """Return the parts of a modification whose learning rate is to be searched for."""
    return [each for each in modification.parts if isinstance(each, FineTune) and each.searches]


def _strings(value: Any) -> list[str]:
    """Return every text in a document's field, whatever lists and tables it stands in."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inside for text in _strings(each)]
