"""The fingerprint sets of a run: those that are written down, and those that are made for a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.fingerprints import FingerprintSet, find_set, load_fingerprints
from fpbench.fingerprints.code_mixed import CODE_MIXED, code_mixed_set, draw_queries, recipe_of
from fpbench.fingerprints.natural import draw_natural_set
from fpbench.fingerprints.translation import SHIPPED, Lexicon
from fpbench.hub.lock import sha256
from fpbench.records.cell import label_of
from fpbench.records.record import cell_id
from fpbench.records.store import making, write_text
from fpbench.runs.profile import Profile

if TYPE_CHECKING:
    from fpbench.runs.subject import Subject

COUNT, LENGTH = 10, 2  # fingerprints of a built-in set, and words of their queries (protocol §9)
Sets = dict[tuple[str, int], FingerprintSet]


def written_sets(profile: Profile) -> Sets:
    """Return the sets that are the same for every model, by label and seed; :class:`InputError` if one will not do."""
    labels = [label_of(name) for name in profile.fingerprints]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two fingerprint sets are called {label!r}: rename one of the files.")
    for name in profile.fingerprints:
        if len(profile.seeds) > 1 and (name in profile.sets or name.endswith((".jsonl", ".json"))):
            raise InputError(
                f"set {name!r} is a file: {len(profile.seeds)} seeds would count the same fingerprints as often; ask "
                "for one seed, or for a set that is drawn (if, nlf, cf)."
            )
    made = made_for_models(profile)
    wanted = [(name, seed) for name in profile.fingerprints for seed in profile.seeds if (name, seed) not in made]
    return {(label_of(name), seed): find_set(name, profile.sets, seed) for name, seed in wanted}


def code_mixed(profile: Profile) -> list[str]:
    """Return the code-mixed sets that a profile asks for; each model gets its own."""
    return [name for name in profile.fingerprints if name in CODE_MIXED and name not in profile.sets]


def made_for_models(profile: Profile) -> list[tuple[str, int]]:
    """Return set and seed wherever each model gets a set of its own: code-mixed ones, ``nlf`` after the first seed."""
    # Further seeds draw their own sets (protocol §1), of words that the model's tokenizer has to know.
    drawn = [("nlf", seed) for seed in profile.seeds[1:] if "nlf" in profile.fingerprints and "nlf" not in profile.sets]
    return [(name, seed) for name in code_mixed(profile) for seed in profile.seeds] + drawn


def model_sets(subject: "Subject") -> Sets:
    """Return the sets of the subject's profile that are made for its model, by name and seed.

    Each is built from the shipped lexicon once for a model and seed, and kept with its recipe below ``sets/``.
    :class:`InputError` if the tokenizer knows too few of its words, :class:`CellError` if a perplexity is not finite.
    """
    return {(name, seed): _model_set(subject, name, seed) for name, seed in made_for_models(subject.profile)}


def _model_set(subject: "Subject", name: str, seed: int) -> FingerprintSet:
    identity = subject.identity | {"kind": name, "seed": seed, "lexicon": sha256(SHIPPED)}
    path = subject.store.folder / "sets" / f"{subject.settings.label}-{name}-{seed}-{cell_id(identity)}.jsonl"
    with making(subject.store.folder, path.name):
        if (kept := _kept(path)) is not None:
            return replace(kept, name=name)
        if name == "nlf":
            fingerprints = replace(draw_natural_set(COUNT, LENGTH, subject.tokenizer, seed=seed), name=name)
            recipe = recipe_of(fingerprints, seed)
        else:
            lexicon = Lexicon.shipped()
            queries = draw_queries(lexicon, COUNT, LENGTH, subject.tokenizer, seed)
            fingerprints, recipe = code_mixed_set(name, queries, lexicon, subject.model, subject.tokenizer, seed=seed)
        write_set(path, fingerprints, recipe | identity)
        return fingerprints


def _kept(path: Path) -> FingerprintSet | None:
    try:
        recipe = json.loads(recipe_path(path).read_text(encoding="utf-8"))
        fingerprints = load_fingerprints(path)
        return fingerprints if recipe["fingerprints"] == fingerprints.digest else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None  # it is built again


def recipe_path(path: Path) -> Path:
    """Return where the recipe of a set stands: beside it."""
    return path.with_name(f"{path.stem}.recipe.json")


def write_set(path: Path, fingerprints: FingerprintSet, recipe: Mapping[str, Any]) -> None:
    """Write a set and its recipe: both, or neither and a :class:`StorageError` if the disk gives out."""
    write_text(recipe_path(path), json.dumps(recipe, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    try:
        write_text(path, fingerprints.to_lines())
    except StorageError:
        recipe_path(path).unlink(missing_ok=True)
        raise
