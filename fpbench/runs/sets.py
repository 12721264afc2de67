"""The fingerprint sets of a run: those that are written down, and those that are made for a model."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.fingerprints import Fingerprints, FingerprintSet, find_set, fingerprints_of, load_fingerprints
from fpbench.fingerprints.code_mixed import CODE_MIXED, code_mixed_set, draw_queries, recipe_of
from fpbench.fingerprints.library import BUILT_IN, SIZE
from fpbench.fingerprints.natural import draw_natural_set
from fpbench.fingerprints.sets import read_set
from fpbench.fingerprints.translation import SHIPPED, Lexicon
from fpbench.hub.lock import sha256
from fpbench.records.record import cell_id
from fpbench.records.store import making, write_text
from fpbench.runs.profile import Profile

if TYPE_CHECKING:
    from fpbench.methods.base import FingerprintMethod, InjectionContext
    from fpbench.runs.subject import Subject

Given = str | Fingerprints  # a set by its name or file, or as an object

LENGTH = 2  # words of a drawn query (protocol §9)
Sets = dict[tuple[str, int], FingerprintSet]


def written_sets(profile: Profile) -> Sets:
    """Return the sets that are the same for every model, by label and seed; :class:`InputError` if one will not do."""
    labels = [profile.set_label(name) for name in profile.fingerprints]
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
    found = {(name, seed): find_set(name, profile.sets, seed, profile.set_size) for name, seed in wanted}
    labels_of = {name: profile.set_label(name) for name in profile.fingerprints}
    return {(labels_of[name], seed): replace(each, name=labels_of[name]) for (name, seed), each in found.items()}


@contextlib.contextmanager
def named(given: Given) -> Iterator[str]:
    """Yield the name of a set or its file; what is handed in as an object has a file for as long as the block lasts.

    Raises:
        InputError: for what is no set.
    """
    if isinstance(given, str):
        yield given
        return
    pairs = fingerprints_of(given)
    if pairs.name in BUILT_IN and pairs.digest == find_set(pairs.name).digest:
        yield pairs.name
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{pairs.name}.jsonl"
        pairs.save(path)
        yield str(path)


def code_mixed(profile: Profile) -> list[str]:
    """Return the code-mixed sets that a profile asks for; each model gets its own."""
    return [name for name in profile.fingerprints if name in CODE_MIXED and name not in profile.sets]


def made_for_models(profile: Profile) -> list[tuple[str, int]]:
    """Return set and seed wherever each model gets a set of its own: code-mixed ones, ``nlf`` after the first seed.

    An ``nlf`` that is larger than the written one is drawn for the first seed, too.
    """
    # Further seeds draw their own sets (protocol §1), of words that the model's tokenizer has to know.
    seeds = profile.seeds if profile.set_size > SIZE else profile.seeds[1:]
    drawn = [("nlf", seed) for seed in seeds if "nlf" in profile.fingerprints and "nlf" not in profile.sets]
    return [(name, seed) for name in code_mixed(profile) for seed in profile.seeds] + drawn


def model_sets(subject: "Subject") -> Sets:
    """Return the sets of the subject's profile that are made for its model, by label and seed.

    Each is built from the shipped lexicon once for a model and seed, and kept with its recipe below ``sets/``.
    :class:`InputError` if the tokenizer knows too few of its words, :class:`CellError` if a perplexity is not finite.
    """
    profile = subject.profile
    return {(profile.set_label(name), seed): _model_set(subject, name, seed) for name, seed in made_for_models(profile)}


def _model_set(subject: "Subject", name: str, seed: int) -> FingerprintSet:
    size, label = subject.profile.set_size, subject.profile.set_label(name)
    identity = subject.identity | {"kind": name, "seed": seed, "lexicon": sha256(SHIPPED)}
    if size != SIZE:
        identity["size"] = size
    path = subject.store.folder / "sets" / f"{subject.settings.label}-{label}-{seed}-{cell_id(identity)}.jsonl"
    with making(subject.store.folder, path.name):
        if (kept := _kept(path)) is not None:
            return replace(kept, name=label)
        if name == "nlf":
            fingerprints = draw_natural_set(size, LENGTH, subject.tokenizer, seed=seed)
            recipe = recipe_of(fingerprints, seed)
        else:
            lexicon = Lexicon.shipped()
            queries = draw_queries(lexicon, size, LENGTH, subject.tokenizer, seed)
            fingerprints, recipe = code_mixed_set(name, queries, lexicon, subject.model, subject.tokenizer, seed=seed)
        write_set(path, fingerprints, recipe | identity)
        return replace(fingerprints, name=label)


def own_set(
    method: "FingerprintMethod", model: Any, tokenizer: Any, count: int, context: "InjectionContext"
) -> tuple[FingerprintSet, dict[str, Any]]:
    """Have a method make a set of its own for a model; return it, named after the method, and its recipe.

    Raises:
        InputError: if the method makes none, or another number than was asked for, or a text that no set may hold.
        CellError: if it fails in a process of its own.
    """
    drawn = method.draw_set(model, tokenizer, count, context)
    if len(drawn) != count:
        raise InputError(f"method {method.name!r} made {len(drawn)} fingerprints, expected {count}: ask for fewer.")
    made = FingerprintSet(method.name, tuple(drawn))
    fingerprints = read_set(made.to_lines(), Path(f"{method.name}.jsonl"))  # held to what any file is held to
    recipe = recipe_of(fingerprints, context.seed) | {"method": method.name, "version": method.version}
    return fingerprints, recipe | {"hyperparameters": method.config.model_dump(mode="json")}


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
