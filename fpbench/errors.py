"""The errors a user meets. Each message says what was expected, what was found and what to do."""


class FpbenchError(Exception):
    """Base of every error that fpbench raises on purpose."""


class InputError(FpbenchError):
    """The user's input is wrong, or a target cannot be written. Found before work starts; exit code 2."""


class CellError(FpbenchError):
    """One measurement failed. Its cell is recorded as failed with this reason; the grid goes on; exit code 1."""


class StorageError(FpbenchError):
    """The disk gave out during a run. Finished records stay; exit code 1."""
