"""The lock file of what was fetched, written (:mod:`fpbench.hub.lock` reads it)."""

import tempfile

from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.lock import Pin
from fpbench.records.store import making, write_text


def add_pin(name: str, pin: Pin) -> None:
    """Write a pin into the lock file, whole or not at all; what other processes pin meanwhile stays."""
    with making(lock.cache(), "lock.json"):
        write_text(lock.lock_file(), lock.text(lock.pins() | {name: pin}))


def check_cache() -> None:
    """Check that fpbench's cache can be written, before anything is downloaded; :class:`InputError` if not."""
    folder = lock.cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cache folder {folder} cannot be written ({error.strerror or error}): name another in FPBENCH_CACHE."
        ) from None
