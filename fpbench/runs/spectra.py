"""Spectra on disk: computed once for a model and a text, whole, so that every run may cut them anew."""

from collections import UserDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fpbench.methods.editing.statistics import KeyStatistics
from fpbench.runs.lock import making
from fpbench.runs.store import SCHEMA, cell_id, written


class Spectra(UserDict[str, KeyStatistics]):
    """Key statistics by module: read from the disk on first need, written to it when they are set.

    Damaged files are as good as none.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Use ``folder``; nothing is created yet.

        Args:
            folder: of the files.
            identity: everything that decides the statistics except the module: model, dtype, text, number of tokens.
        """
        super().__init__()
        self.folder, self.identity = folder, identity

    def path(self, module: str) -> Path:
        """The file of one module's statistics."""
        return self.folder / f"{module}-{cell_id(self.identity | {'schema': SCHEMA, 'module': module})}.safetensors"

    def making(self) -> AbstractContextManager[None]:
        """Wait until no other worker computes statistics of this model over this text."""
        return making(self.folder.parent, f"statistics-{cell_id(self.identity)}")

    def __contains__(self, module: object) -> bool:
        if module not in self.data and (stored := KeyStatistics.load(self.path(str(module)))):
            self.data[str(module)] = stored
        return module in self.data

    def __setitem__(self, module: str, statistics: KeyStatistics) -> None:
        with written(self.path(module)) as temporary:
            statistics.save(temporary)
        self.data[module] = statistics
