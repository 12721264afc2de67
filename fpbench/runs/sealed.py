"""The set of a verification: built-in, a file, or a sealed set's openings, of which only what was used is shown."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.sealing import commitment, reveal, triggers
from fpbench.runs.sets import recipe_path

OPENINGS = ".openings"


@dataclass(frozen=True)
class Secrets:
    """A set and what is known about how it was made and sealed.

    Attributes:
        fingerprints: the set.
        openings: the private document of a sealed set; ``None`` for others.
        dealt: whether the set's recipe says that a seed dealt its targets to its triggers.
    """

    fingerprints: FingerprintSet
    openings: Mapping[str, Any] | None
    dealt: bool

    @classmethod
    def load(cls, name: str, files: Mapping[str, str], seed: int) -> "Secrets":
        """Find a set.

        Args:
            name: a built-in set, a name of ``files``, a ``.jsonl`` file, or the ``.json`` file of openings.
            files: set names that a profile maps to files of its own.
            seed: draws the keys of ``if``.

        Raises:
            InputError: if it is none of these, or malformed.
        """
        openings = None
        if name.endswith(".json") and name not in files:
            openings = _openings(Path(name))
            pairs = [opening["fingerprint"] for opening in openings["openings"]]
            found = FingerprintSet(
                Path(name).stem.removesuffix(OPENINGS),
                tuple(Fingerprint(pair["trigger"], tuple(pair["targets"])) for pair in pairs),
            )
        else:
            found = find_set(name, files, seed)
        return cls(found, openings, _dealt(Path(files.get(name, name)), found))

    @property
    def digest(self) -> str:
        """SHA-256 of the set; of a sealed one only of its commitments, which says nothing about any pair."""
        if self.openings is None:
            return self.fingerprints.digest
        return hashlib.sha256("".join(sorted(map(commitment, self.openings["openings"]))).encode()).hexdigest()

    def reveal(self, trigger: str) -> Mapping[str, Any]:
        """The opening of one pair of a sealed set."""
        assert self.openings is not None, "only a sealed set has openings"
        return reveal(self.openings, trigger)


def _openings(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): check the path, or whether it is whole.") from None
    if not triggers(document):
        raise InputError(f"{path} holds no fingerprints: expected the openings of a sealed set.")
    return dict(document)


def _dealt(path: Path, fingerprints: FingerprintSet) -> bool:
    """Whether the recipe beside a set says that a seed dealt its targets, every dealing as likely, none of them twice.

    The code-mixed recipe, which names its queries, deals the words that the model knows best first: it does not count.
    """
    try:
        recipe = json.loads(recipe_path(path.with_stem(path.stem.removesuffix(OPENINGS))).read_text(encoding="utf-8"))
        drawn = recipe["fingerprints"] == fingerprints.digest and {"seed", "candidates"} <= recipe.keys()
        drawn = drawn and "queries" not in recipe
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return drawn and len(fingerprints.targets) == sum(len(each.targets) for each in fingerprints)
