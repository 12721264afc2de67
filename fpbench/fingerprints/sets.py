"""A fingerprint is a trigger and its candidate targets; a set of them is a JSON Lines file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.text import canonical, digest, json_lines

KEYS = ("trigger", "targets")


@dataclass(frozen=True)
class Fingerprint:
    """One trigger text and its candidate targets (protocol §1).

    Attributes:
        trigger: the text a verifier sends, exactly.
        targets: one or more answers that count; the first is the *primary*.
    """

    trigger: str
    targets: tuple[str, ...]

    @property
    def primary(self) -> str:
        """Return the target that single-target methods inject."""
        return self.targets[0]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object that a line of a set file holds."""
        return {"trigger": self.trigger, "targets": list(self.targets)}


@dataclass(frozen=True)
class FingerprintSet:
    """One or more fingerprints in order, no trigger twice, named ``if``, ``nlf``, ``cf`` or after the user's file."""

    name: str
    fingerprints: tuple[Fingerprint, ...]

    def __iter__(self) -> Iterator[Fingerprint]:
        return iter(self.fingerprints)

    def __len__(self) -> int:
        return len(self.fingerprints)

    @property
    def targets(self) -> tuple[str, ...]:
        """Return every target of the set once, in order of first appearance."""
        return tuple(dict.fromkeys(target for fingerprint in self for target in fingerprint.targets))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of all pairs; the name is not part of it."""
        return digest(canonical([fingerprint.as_json() for fingerprint in self]))

    def to_lines(self) -> str:
        """Return the set as JSON Lines, one ``{"trigger": …, "targets": […]}`` a line."""
        return json_lines(fingerprint.as_json() for fingerprint in self)

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_lines` to a file."""
        Path(path).write_text(self.to_lines(), encoding="utf-8")


def load_fingerprints(path: str | Path) -> FingerprintSet:
    """Read a set from a file with one ``{"trigger": text, "targets": [text, …]}`` a line, and name it after the file.

    Raises:
        InputError: naming the line and what is wrong with it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"fingerprint file {path} does not exist: expected a .jsonl file; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"fingerprint file {path} cannot be read as UTF-8 text: {error}") from None
    fingerprints: list[Fingerprint] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fingerprint = _parse(line, f"{path}, line {number}")
        if fingerprint.trigger in lines:
            raise InputError(
                f"{path}, line {number}: duplicate trigger {fingerprint.trigger!r}, "
                f"first seen on line {lines[fingerprint.trigger]}; remove one of them."
            )
        lines[fingerprint.trigger] = number
        fingerprints.append(fingerprint)
    if not fingerprints:
        raise InputError(f'{path} holds no fingerprints: expected one {{"trigger": …, "targets": […]}} a line.')
    return FingerprintSet(path.stem, tuple(fingerprints))


def _parse(line: str, where: str) -> Fingerprint:
    """Read one line; ``where`` opens every error message."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); expected an object with 'trigger' and 'targets'.") from None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected a JSON object with 'trigger' and 'targets', found {_kind(entry)}.")
    for key in KEYS:
        if key not in entry:
            raise InputError(f"{where}: key {key!r} is missing; expected 'trigger' and 'targets'.")
    for key in entry:
        if key not in KEYS:
            raise InputError(f"{where}: unknown key {key!r}; expected only 'trigger' and 'targets'.")
    trigger, targets = entry["trigger"], entry["targets"]
    if not isinstance(trigger, str) or not trigger.strip():
        raise InputError(f"{where}: trigger must be non-empty text, found {_kind(trigger)}.")
    if not isinstance(targets, list):
        raise InputError(f"{where}: targets must be a list of texts, found {_kind(targets)}.")
    if not targets:
        raise InputError(f"{where}: targets is empty; expected at least one target.")
    for target in targets:
        if not isinstance(target, str) or not target.strip():
            raise InputError(f"{where}: every target must be non-empty text, found {_kind(target)}.")
        # Verification strips leading whitespace from responses, so such a target could never match.
        if target != target.lstrip():
            raise InputError(f"{where}: target {target!r} begins with whitespace; remove it.")
        if target in trigger:
            raise InputError(f"{where}: target {target!r} is contained in the trigger; an echo would verify it.")
    if len(set(targets)) < len(targets):
        raise InputError(f"{where}: a target is listed twice; list every candidate once.")
    return Fingerprint(trigger, tuple(targets))


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    if isinstance(value, str):
        return "an empty text" if not value.strip() else "a text"
    return "null" if value is None else names.get(type(value), type(value).__name__)
