"""SHA-256 of large files, remembered by size and time: a checkpoint of 16 GB is not read whole at every resume."""

import json
from pathlib import Path
from typing import Any

from fpbench.hub.lock import sha256
from fpbench.runs.store import write_text


class Digests:
    """Digests of files, kept in one JSON file: path → size, time of last change in nanoseconds, SHA-256."""

    def __init__(self, path: Path) -> None:
        """Read what is known; a file that cannot be read is as good as none.

        Args:
            path: of the JSON file.
        """
        self.path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> str:
        """SHA-256 of a file; read only if its size or time is not that of the last reading.

        Raises:
            StorageError: if it was read and cannot be remembered.
        """
        found = path.stat()
        state = [found.st_size, found.st_mtime_ns]
        match self._known.get(str(path.resolve())):
            case [size, time, str(digest)] if [size, time] == state:
                return digest
        self._known[str(path.resolve())] = [*state, found_digest := sha256(path)]
        write_text(self.path, json.dumps(self._known, indent=1, sort_keys=True) + "\n")
        return found_digest
