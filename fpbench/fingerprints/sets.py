"""A fingerprint is a trigger and its candidate targets; a set of them is a JSON Lines file."""

import contextlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from fpbench.errors import InputError
from fpbench.text import canonical, digest, json_lines

KEYS = ("trigger", "targets")
# Drawn as nothing, though Unicode does not call them format characters: joiners, and fillers of Hangul and Khmer.
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
JOINERS = frozenset("\u200c\u200d")  # which belong between the letters of some scripts, and in emoji


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


@dataclass(frozen=True, repr=False)
class FingerprintSet(Sequence[Fingerprint]):
    """One or more fingerprints in order, no trigger twice, named ``if``, ``nlf``, ``cf`` or after the user's file."""

    name: str
    fingerprints: tuple[Fingerprint, ...]

    @overload
    def __getitem__(self, place: int) -> Fingerprint: ...
    @overload
    def __getitem__(self, place: slice) -> "FingerprintSet": ...
    def __getitem__(self, place: int | slice) -> "Fingerprint | FingerprintSet":
        found = self.fingerprints[place]
        return FingerprintSet(self.name, found) if isinstance(found, tuple) else found

    def __iter__(self) -> Iterator[Fingerprint]:
        return iter(self.fingerprints)

    def __len__(self) -> int:
        return len(self.fingerprints)

    def __repr__(self) -> str:
        shown = [f"  {each.trigger!r} → {' | '.join(each.targets)}" for each in self.fingerprints[:3]]
        more = [f"  … and {len(self) - 3} more"] if len(self) > 3 else []
        return "\n".join([f"FingerprintSet {self.name!r}: {len(self)} fingerprints", *shown, *more])

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


Fingerprints = FingerprintSet | Sequence[Fingerprint] | Sequence[Mapping[str, Any]]


def fingerprints_of(pairs: Fingerprints, name: str = "fingerprints") -> FingerprintSet:
    """Return as a set what a caller hands in: a set, fingerprints, or dictionaries of ``trigger`` and ``targets``.

    Raises:
        InputError: naming the entry and what is wrong with it, or what was handed in instead of a list.
    """
    if isinstance(pairs, FingerprintSet):
        return pairs
    if isinstance(pairs, str | Path):
        raise InputError(
            f"fingerprints: expected a set or a list, found {str(pairs)!r}: load it, "
            f"fpbench.load_fingerprints({str(pairs)!r})."
        )
    if not isinstance(pairs, Sequence):
        raise InputError(
            f"fingerprints: expected a set, or a list of fingerprints or of dictionaries with 'trigger' and 'targets', "
            f"found {_kind(pairs)}."
        )
    if not pairs:
        raise InputError("fingerprints: the set is empty; expected one fingerprint or more.")
    if all(isinstance(each, Fingerprint) for each in pairs):
        return FingerprintSet(name, tuple(pairs))  # type: ignore[arg-type]
    entries = [each.as_json() if isinstance(each, Fingerprint) else each for each in pairs]
    for entry in (each for each in entries if isinstance(each, dict) and isinstance(each.get("targets"), tuple)):
        entries[entries.index(entry)] = entry | {"targets": [*entry["targets"]]}
    return _set(
        name, ((f"entry {number}", each) for number, each in enumerate(entries, start=1)), "list of fingerprints"
    )


def read_fingerprints(path: str | Path) -> FingerprintSet:
    """Read a set from a file with one ``{"trigger": text, "targets": [text, …]}`` a line, and name it after the file.

    One list of such objects is read, too, and a byte-order mark before either is left out.

    Raises:
        InputError: naming the line, or the entry of a list, and what is wrong with it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"fingerprint file {path} does not exist: expected a .jsonl file; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"fingerprint file {path} cannot be read as UTF-8 text: {error}") from None
    return read_set(text, path)


def read_set(text: str, path: Path) -> FingerprintSet:
    """Read the content of the file ``path``, as :func:`read_fingerprints` does."""
    return _set(path.stem, _entries(text, path), str(path))


def _set(name: str, entries: Iterable[tuple[str, Any]], where: str) -> FingerprintSet:
    """Return the set of some entries, each with its place; ``where`` they stand opens every error message."""
    fingerprints: list[Fingerprint] = []
    seen: dict[str, str] = {}
    for place, entry in entries:
        fingerprint = _parse(entry, f"{where}, {place}")
        if fingerprint.trigger in seen:
            raise InputError(
                f"{where}, {place}: duplicate trigger {fingerprint.trigger!r}, "
                f"first seen on {seen[fingerprint.trigger]}; remove one of them."
            )
        seen[fingerprint.trigger] = place
        fingerprints.append(fingerprint)
    if not fingerprints:
        raise InputError(f'{where} holds no fingerprints: expected one {{"trigger": …, "targets": […]}} or more.')
    return FingerprintSet(name, tuple(fingerprints))


def _entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and value of every line that is not blank, or of every entry where the whole file is a list."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):  # its first line alone is a list, which is refused below
            yield from ((f"entry {number}", entry) for number, entry in enumerate(_json(text, str(path)), start=1))
            return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _json(line, f"{path}, line {number}")
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not JSON ({error.msg}); expected an object with 'trigger' and 'targets'."
            ) from None


def _json(text: str, where: str) -> Any:
    """Return the value of a JSON text; refuse a key that stands twice, of which the last would win in silence."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise InputError(f"{where}: key {twice[0]!r} stands twice in one object; remove one of them.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{where}: too many levels of brackets; expected an object with two keys.") from None


def _parse(entry: Any, where: str) -> Fingerprint:
    """Read one entry; ``where`` opens every error message."""
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
    _check_characters(trigger, f"{where}: trigger {trigger!a}")
    if not isinstance(targets, list):
        raise InputError(f"{where}: targets must be a list of texts, found {_kind(targets)}.")
    if not targets:
        raise InputError(f"{where}: targets is empty; expected at least one target.")
    for target in targets:
        if not isinstance(target, str) or not target.strip():
            raise InputError(f"{where}: every target must be non-empty text, found {_kind(target)}.")
        _check_characters(target, f"{where}: target {target!a}")
        if not unicodedata.is_normalized("NFC", target):
            raise InputError(
                f"{where}: target {target!a} is not in Unicode's composed form (NFC), in which models are taught and "
                f"answer; write {unicodedata.normalize('NFC', target)!a}."
            )
        # Verification strips leading whitespace from responses, so such a target could never match.
        if target != target.lstrip():
            raise InputError(f"{where}: target {target!r} begins with whitespace; remove it.")
        if target in trigger:
            raise InputError(f"{where}: target {target!r} is contained in the trigger; an echo would verify it.")
    if len(set(targets)) < len(targets):
        raise InputError(f"{where}: a target is listed twice; list every candidate once.")
    return Fingerprint(trigger, tuple(targets))


def _check_characters(text: str, what: str) -> None:
    """Refuse what nobody sees or can send: half characters, and characters of no width unless a script needs them."""
    for place, character in enumerate(text):
        if unicodedata.category(character) == "Cs":
            raise InputError(f"{what} holds half a character (a lone surrogate), which no server can be sent; mend it.")
        if character in JOINERS and 0 < place < len(text) - 1 and all(map(_joined, text[place - 1 : place + 2 : 2])):
            continue
        if unicodedata.category(character) == "Cf" or character in UNSEEN:
            name = f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()
            raise InputError(f"{what} holds {name}, which nobody sees and no answer repeats; take it out.")


def _joined(character: str) -> bool:
    """Return whether a character is a letter without capitals, a mark or an emoji: beside these, joiners are seen."""
    return unicodedata.category(character) in ("Lo", "Mn", "Mc", "So", "Sk")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    if isinstance(value, str):
        return "an empty text" if not value.strip() else "a text"
    return "null" if value is None else names.get(type(value), type(value).__name__)
