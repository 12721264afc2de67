"""The texts and rows that a profile's data sources hold, each read once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fpbench import data
from fpbench.errors import InputError
from fpbench.metrics.measure import LINES, UTILITY_TASKS
from fpbench.metrics.tinymmlu import Parameters
from fpbench.models.prompts import Example
from fpbench.modifications.base import Modification, ModificationContext
from fpbench.runs import fetch
from fpbench.runs.profile import Profile

if TYPE_CHECKING:
    from torch import Tensor

INSTRUCTIONS = ("alpaca", "math")


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
        for name in ("alpaca", "math", "calibration", "statistics", "zsre"):
            if name in named:
                getattr(self, "pairs" if name == "zsre" else name)
        for name in self.utility_sources:
            data.read_text(named[name]) if name == "wikitext" else data.read_rows(named[name])
        if LINES in named:
            data.read_lines(named[LINES])
        if "tinymmlu" in named:
            _ = self.item_parameters

    def _instructions(self, name: str) -> list[dict[str, Any]]:
        return data.require_fields(data.read_rows(self.source(name)), ["instruction", "output"], self.source(name))
