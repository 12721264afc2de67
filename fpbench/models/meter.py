"""Seconds and peak memory of a block of code, and how far a long task is."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

import psutil

T = TypeVar("T")
Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable in a labelled progress bar."""
INTERVAL = 0.02  # seconds between two looks at the resident memory of a process without a GPU


def no_progress(iterable: Iterable[T], label: str) -> Iterable[T]:
    """Iterate without showing anything."""
    return iterable


class Meter:
    """Measures the block it is entered for."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.seconds = 0.0  # wall clock
        self.peak_memory = 0  # bytes at the highest point: on the GPU, or resident in the process without one

    def __enter__(self) -> "Meter":
        import torch  # only where something is measured: a finished run is shown without it

        give_back()
        self._start = perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_memory = max(self.peak_memory, process.memory_info().rss)
            if self._done.wait(INTERVAL):
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self._done.set()
        self._watcher.join()
        self.seconds = perf_counter() - self._start
        if torch.cuda.is_available():
            self.peak_memory = torch.cuda.max_memory_allocated()


def give_back() -> None:
    """Have the C library return the freed memory that it keeps, where it can: it would count as used."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
