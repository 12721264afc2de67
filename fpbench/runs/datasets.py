"""The texts and rows that a profile's data sources hold, each read once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from fpbench import data
from fpbench.adversaries.price import Items
from fpbench.errors import InputError
from fpbench.metrics.lettered import OF, questions
from fpbench.metrics.measure import LINES, UTILITY_TASKS
from fpbench.metrics.tinymmlu import Parameters
from fpbench.models.prompts import Example
from fpbench.modifications.base import Modification, ModificationContext
from fpbench.runs import fetch
from fpbench.runs.profile import Profile

if TYPE_CHECKING:
    from torch import Tensor

INSTRUCTIONS = ("alpaca", "math")
LOOKED_AT = 1_000  # benign instructions that a thief may look at beforehand


class Datasets:
    """The data of one profile. Everything is read on first use; :meth:`check` reads it all before work starts."""

    def __init__(self, profile: Profile) -> None:
        """Read nothing yet."""
        self.profile = profile
        self._digests: dict[str, str] = {}

    def source(self, name: str) -> str:
        """Return the data source that the profile names; :class:`InputError` if it names none."""
        if name not in self.profile.data:
            raise InputError(f"profile {self.profile.name!r} has no data source {name!r}: add it to its [data] table.")
        return self.profile.data[name]

    def digests(self, *names: str) -> dict[str, str]:
        """Return the SHA-256 of each named source."""
        for name in names:
            if name not in self._digests:
                self._digests[name] = data.digest(self.source(name))
        return {name: self._digests[name] for name in names}

    @cached_property
    def alpaca(self) -> list[dict[str, Any]]:
        """Instruction rows: fine-tuning, trigger contexts, bands."""
        return self._instructions("alpaca")

    @cached_property
    def math(self) -> list[dict[str, Any]]:
        """Worded problems with answers, in instruction form."""
        return self._instructions("math")

    @cached_property
    def calibration(self) -> list[str]:
        """Plain documents for pruning (C4)."""
        return data.read_texts(self.source("calibration"))

    @cached_property
    def statistics(self) -> list[str]:
        """Plain documents for key statistics (Wikipedia)."""
        return data.read_texts(self.source("statistics"))

    @cached_property
    def pairs(self) -> list[Example]:
        """Question–answer pairs that no fingerprint touches: the locality side of ZsRE, whose answers are true."""
        rows = data.require_fields(data.read_rows(self.source("zsre")), ["loc", "loc_ans"], self.source("zsre"))
        questions = (row["loc"].removeprefix("nq question: ").rstrip("?") for row in rows)
        return [Example(f"{question}?", row["loc_ans"]) for question, row in zip(questions, rows, strict=True)]

    @cached_property
    def item_parameters(self) -> tuple[Parameters, str] | None:
        """The item parameters of tinyMMLU, and the SHA-256 of their file; ``None`` before they are fetched."""
        return fetch.read_item_parameters(fetch.SOURCE)

    @property
    def benign(self) -> list[dict[str, Any]]:
        """Instruction rows that a thief may look at: those before the ones that price adversaries."""
        sizes = self.profile.sizes
        end = len(self.alpaca) - sizes.context_rows - sizes.price_instructions
        return self.alpaca[max(0, end - LOOKED_AT) : max(0, end)]

    @cached_property
    def running_text(self) -> str:
        """The text of token perplexity: lines joined by blank lines where the profile names some, else the pages."""
        if LINES in self.profile.data:
            return "\n\n".join(data.read_lines(self.source(LINES)))
        return data.read_text(self.source("wikitext"))

    @cached_property
    def price_items(self) -> Items:
        """What adversaries are priced on: instruction rows on which nothing is trained, answers, ordinary language.

        The instructions are those before the last rows, which give the trigger contexts. The texts of ``answers`` end
        in their answer (LAMBADA), or are questions with one (``src`` and ``ans``). Letters are those of ARC-Challenge,
        where the profile names it.
        """
        sizes, source = self.profile.sizes, self.source("answers")
        rows = self.alpaca[: -sizes.context_rows][-sizes.price_instructions :]
        if len(rows) < 2:
            raise InputError(f"profile {self.profile.name!r}: too few instruction rows to price an adversary on.")
        answers = data.read_rows(source)
        fields = ["text"] if "text" in answers[0] else ["src", "ans"]
        data.require_fields(answers, fields, source)
        pairs = (
            row["text"].rsplit(None, 1) if "text" in row else (f"Question: {row['src']}\nAnswer:", row["ans"])
            for row in answers
        )
        # Their prompts are about four times as long.
        lettered = questions(self.source(OF), max(2, sizes.price_answers // 4)) if OF in self.profile.data else []
        return Items(
            instructions=[Example("\n\n".join(filter(None, _asked(row))), row["output"]) for row in rows],
            answers=[Example(*pair) for pair in islice(pairs, sizes.price_answers)],
            letters=[(Example(each.prompt, each.letter), each.choices) for each in lettered],
            text=self.running_text,
            window=sizes.perplexity_window,
            windows=sizes.perplexity_windows,
        )

    @property
    def utility_sources(self) -> dict[str, str]:
        """The sources of the utility tasks that the profile names."""
        return {name: source for name, source in self.profile.data.items() if name in UTILITY_TASKS}

    def rows(self, modification: Modification) -> dict[str, Sequence[dict[str, str]]]:
        """Return the instruction rows that a modification asks for, by the name of their source."""
        return {name: getattr(self, name) for name in modification.data if name in INSTRUCTIONS}

    def modification_context(
        self, modification: Modification, seed: int, progress: Any, base: Mapping[str, "Tensor"]
    ) -> ModificationContext:
        """Return what a modification may know: the data that it asks for, and the base's weights."""
        calibration = self.calibration if "calibration" in modification.data else ()
        return ModificationContext(seed, self.rows(modification), calibration, progress, base)

    def check(self) -> None:
        """Read every source that the profile names; :class:`InputError` for the first that is missing or malformed."""
        named = self.profile.data
        for name in ("alpaca", "math", "calibration", "statistics", "zsre", "answers"):
            if name in named:
                getattr(self, {"zsre": "pairs", "answers": "price_items"}.get(name, name))
        for name in self.utility_sources:
            data.read_text(named[name]) if name == "wikitext" else data.read_rows(named[name])
        if LINES in named:
            data.read_lines(named[LINES])
        if "tinymmlu" in named:
            _ = self.item_parameters

    def _instructions(self, name: str) -> list[dict[str, Any]]:
        return data.require_fields(data.read_rows(self.source(name)), ["instruction", "output"], self.source(name))


def _asked(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the instruction of a row and its input, which may be empty."""
    return row["instruction"], row.get("input") or ""
