"""A profile: which models, sets, methods, conditions, data and sizes a run uses (TOML, unknown keys refused)."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from fpbench.adversaries.conditions import check, expand, name_of, parts
from fpbench.checks import Settings, first_error
from fpbench.errors import InputError
from fpbench.fingerprints.library import SIZE
from fpbench.hub import pypi
from fpbench.methods.hyperparameters import alternatives_of, overlay
from fpbench.metrics.measure import LINES, UTILITY_TASKS
from fpbench.micro import MODEL as MICRO_MODEL
from fpbench.models.checkpoints import check_checkpoint, local_folder
from fpbench.records.cell import ORIGIN, PROTOCOL, label_of
from fpbench.registry import METHODS, MODIFICATIONS, unknown

if TYPE_CHECKING:
    from fpbench.scoring.responses import Decoding

PROFILES = Path(__file__).parent.parent / "profiles"
DATA = ("alpaca", "math", "calibration", "statistics", "zsre", "answers", *UTILITY_TASKS, LINES)
DRAW = 42  # the protocol's seed of contexts, words and near triggers
LONGEST_NAME = 120  # bytes of a name that folders and files have, beside what else is in theirs
SEARCH = "search"  # what a profile writes in place of a learning rate that is to be searched for


class Resources(Settings):
    """Resources of a worker on a cluster, besides as many cores as it has threads."""

    gpus: float = Field(1, gt=0, le=1, description="share of a card, where models are on cards")
    memory_gb: float | None = Field(None, gt=0, description="of the node, in GiB; null asks for none")


class ModelSettings(Settings):
    """One model and the decoding its makers ship (protocol §2)."""

    path: str
    name: str = ""
    revision: str | None = None
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    resources: Resources | None = Field(None, description="in place of the profile's")

    @property
    def label(self) -> str:
        """The model's name in tables and of its folder of records, by default the last part of its path."""
        last = Path(self.path).name
        return self.name or (last if last not in ("", "..") else Path(self.path).resolve().name)

    @property
    def decoding(self) -> "Decoding":
        """Sampling of the model's responses (protocol §2)."""
        from fpbench.scoring.responses import Decoding

        return Decoding(self.temperature, self.top_p, self.top_k)


class Sizes(Settings):
    """Sizes of each measurement; definitions stay those of the protocol."""

    context_rows: int = Field(128, ge=1, description="last instruction rows that give trigger contexts")
    substitutions: int = Field(10_000, ge=0)
    substitute_words: int = Field(5_000, ge=1)
    near_triggers: int = Field(200, ge=1)
    band_texts: int = Field(6_000, ge=2, description="instructions whose perplexity gives the bands")
    statistics_tokens: int = Field(500_000, ge=1)
    perplexity_window: int = Field(2_048, ge=2)
    price_instructions: int = Field(200, ge=2, description="whose reference answers price an adversary")
    price_answers: int = Field(500, ge=2, description="texts that one right word follows, for its price")
    perplexity_windows: int | None = Field(None, ge=1, description="first windows of WikiText; null takes all")
    perplexity_pages: int | None = Field(None, ge=1, description="first pages of WikiText; null takes all")
    utility_limit: int | None = Field(None, ge=1, description="items a task; null takes all")


class Variant(Settings):
    """A method under another name, with hyper-parameters of its own: one more row of the same table."""

    method: str
    config: dict[str, Any] = {}


class Profile(Settings):
    """Everything that decides what a run measures."""

    name: str
    protocol: Literal[2] = PROTOCOL
    prompt: Literal["raw", "chat"] = "raw"
    seeds: tuple[int, ...] = (42,)
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="that models are loaded in; null takes float32 on a CPU and bfloat16 on a card"
    )
    draw: int = Field(DRAW, description="seed of trigger contexts, words and near triggers; others only for re-runs")
    threads: int | None = Field(None, ge=1, description="of one worker; null takes what torch takes")
    resources: Resources = Resources()  # type: ignore[call-arg]
    models: tuple[ModelSettings, ...] = Field(min_length=1)
    methods: tuple[str, ...]
    fingerprints: tuple[str, ...] = Field(min_length=1)
    conditions: tuple[str, ...] = Field(min_length=1)
    sets: dict[str, str] = {}
    set_size: int = Field(SIZE, ge=1, description="fingerprints of a built-in set; files have their own")
    data: dict[str, str] = {}
    sizes: Sizes = Sizes()  # type: ignore[call-arg]
    limit: int | None = Field(None, ge=1, description="items a measurement of a smoke run; its rows are never ranked")
    utility_at_doses: bool = Field(
        False, description="measure the tasks under attacks on weights, too: a further price"
    )
    modifications: dict[str, dict[str, Any]] = {}
    hyperparameters: dict[str, dict[str, Any]] = {}
    variants: dict[str, Variant] = {}

    def builds(self, fingerprints: str) -> bool:
        """Return whether a set is built in, so that it has the size that is asked for."""
        return fingerprints not in self.sets and label_of(fingerprints) == fingerprints

    def set_label(self, fingerprints: str) -> str:
        """Return a set's name in records; that of a built-in one of another size than ten says so: ``nlf-100``."""
        other = self.builds(fingerprints) and self.set_size != SIZE
        return f"{fingerprints}-{self.set_size}" if other else label_of(fingerprints)

    def method_of(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the method that a row's name stands for, and the hyper-parameters that this profile gives it."""
        if (variant := self.variants.get(name)) is None:
            return name, dict(self.hyperparameters.get(name, {}))
        given = self.hyperparameters.get(variant.method, {})
        return variant.method, overlay(given, variant.config, alternatives_of(variant.method))

    def siblings(self, method: str, seed: int) -> list[tuple[str, int]]:
        """Return method and seed of two checkpoints of the same base that a thief may have besides (L2).

        They are of the next two methods, with the set of the next seed; none where there are fewer of either.
        """
        others = [name for name in self.methods if name != method]
        first = self.methods.index(method) if method in self.methods else 0
        if len(others) < 2 or len(self.seeds) < 2 or seed not in self.seeds:
            return []
        following = self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]
        return [(others[(first + number) % len(others)], following) for number in range(2)]

    def searches_rate(self, method: str) -> bool:
        """Return whether the learning rate of a row's injection is left to a search."""
        return method in self.methods and self.method_of(method)[1].get("learning_rate") == SEARCH


def load_profile(name: str, *, full: bool = False, **changes: Any) -> Profile:
    """Read a bundled profile or a ``.toml`` file; ``changes`` replace top-level keys where they are not ``None``.

    With ``full`` its sizes and the settings of its modifications are the protocol's, whatever it cuts.
    :class:`InputError` names the key that is unknown or malformed, or the unknown method, condition or data set.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    if not path.is_file():
        if path.parent == PROFILES:
            raise unknown("profile", name, profile_names())
        raise InputError(f"profile file {name} does not exist: expected a .toml file; check the path.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"profile {path} is not a readable TOML file: {error}") from None
    table = _fill_folder(table, str(path.parent.resolve()))
    if full:
        paper = tomllib.loads((PROFILES / "paper.toml").read_text(encoding="utf-8"))
        table |= {"sizes": {}, "modifications": paper["modifications"]}
    if changes.get("models") is not None:
        changes["models"] = [_model(model, table.get("models", [])) for model in changes["models"]]
    table |= {key: value for key, value in changes.items() if value is not None}
    if isinstance(conditions := table.get("conditions"), list | tuple):
        table["conditions"] = expand([str(each) for each in conditions])
    try:
        profile = Profile(**({"name": path.stem} | table))
    except ValidationError as error:
        (where, reason), found = first_error(error), error.errors()[0]["input"]
        raise InputError(f"profile {name}, key {where!r}: {reason} (found {found!r}).") from None
    _check_names(profile)
    return profile if profile.limit is None else _limited(profile, profile.limit)


# What a smoke run cuts, each with the fewest that its measurement takes.
CUT = {
    "context_rows": 1, "substitutions": 0, "near_triggers": 1, "band_texts": 2, "price_instructions": 2,
    "price_answers": 2, "perplexity_windows": 1, "perplexity_pages": 1, "utility_limit": 1,
}  # fmt: skip


def _limited(profile: Profile, limit: int) -> Profile:
    """Return a profile whose measurements and modifications take at most ``limit`` items each."""
    whole = {name: getattr(profile.sizes, name) for name in CUT}
    sizes = {name: max(least, limit if whole[name] is None else min(whole[name], limit)) for name, least in CUT.items()}
    modifications = {name: dict(settings) for name, settings in profile.modifications.items()}
    for name in {name_of(part) for each in profile.conditions if each != ORIGIN for part in parts(each)}:
        fields = MODIFICATIONS.get(name).Config.model_fields if name in MODIFICATIONS.names() else {}
        for setting in ("rows", "samples"):
            if setting in fields:
                own = modifications.setdefault(name, {})
                own[setting] = min(own.get(setting, fields[setting].default), limit)
    return profile.model_copy(update={"sizes": profile.sizes.model_copy(update=sizes), "modifications": modifications})


def profile_of(models: Sequence[str], named: str | None = None) -> str:
    """Return the profile that is named, else the bundled one that has the models (protocol §5); micro's for none.

    So no model gets the bundled toy data unasked but the bundled model, in its folder or by its name.

    Raises:
        InputError: if none is named and no bundled profile has all of the models, or one does not exist.
    """
    if named is not None:
        return named
    asked = ["micro" if Path(each).is_dir() and MICRO_MODEL.samefile(each) else each for each in models]
    for name in profile_names():
        known = tomllib.loads((PROFILES / f"{name}.toml").read_text(encoding="utf-8"))["models"]
        if (asked and all(_listed(each, known) for each in asked)) or (not asked and name == "micro"):
            return name
    for each in asked:
        if (folder := local_folder(each)) is not None:  # what is wrong with a folder is said first
            check_checkpoint(each, folder, allow_pickle=True)
    raise InputError(
        f"no bundled profile has the model {' and '.join(repr(each) for each in asked)}: name the profile whose data, "
        f"sizes and decoding it is to be measured with ({', '.join(profile_names())}, or a .toml file of yours; the "
        "data of micro are toys)."
    )


def _listed(path: str, known: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the table of a model that is given by its path, its name, or its package."""
    packaged = pypi.parse(path)
    for each in known:
        if path in (each.get("path"), each.get("name")) or (packaged and packaged == pypi.parse(each.get("path", ""))):
            return dict(each)
    return None


def _model(path: str, known: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a model of the command line as the profile lists it, or with the decoding of its first model."""
    if (listed := _listed(path, known)) is not None:
        return listed
    decoding = ("temperature", "top_p", "top_k")
    return {"path": path} | {key: value for key, value in (known or [{}])[0].items() if key in decoding}


def _fill_folder(value: Any, folder: str) -> Any:
    """Replace ``{folder}`` in texts, so that a profile can name files beside itself."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, list):
        return [_fill_folder(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _fill_folder(item, folder) for key, item in value.items()}
    return value


def _check_names(profile: Profile) -> None:
    for kind, names, expected in (
        ("method", [*profile.methods], [*METHODS.names(), *profile.variants]),
        ("method", [*profile.hyperparameters, *(each.method for each in profile.variants.values())], METHODS.names()),
        ("condition", list(profile.modifications), MODIFICATIONS.names()),
        ("data set", list(profile.data), list(DATA)),
    ):
        for name in names:
            if name not in expected:
                raise unknown(kind, name, expected)
    for name in profile.variants:
        if name in METHODS.names():
            raise InputError(f"variant {name!r} has the name of a method: choose another.")
    for condition in profile.conditions:
        if condition != ORIGIN:
            check(condition)
    for kind, names in (
        ("model", [model.label for model in profile.models]),
        ("set", [profile.set_label(name) for name in profile.fingerprints]),
        ("variant", list(profile.variants)),
    ):
        for name in names:
            _check_folder_name(kind, name)
    if profile.set_size != SIZE and not any(profile.builds(name) for name in profile.fingerprints):
        raise InputError(
            f"sets of {profile.set_size}: {', '.join(profile.fingerprints)} is a file, whose size is its own: leave "
            "the size out, or name a set that is built (if, nlf, cf)."
        )
    labels = [model.label for model in profile.models]
    if len(set(labels)) < len(labels):
        raise InputError(f"two models share the name {max(labels, key=labels.count)!r}: give each its own name.")


def _check_folder_name(kind: str, name: str) -> None:
    """Refuse a name that is not that of one folder: records stand in folders that are called after it."""
    plain = name.isprintable() and not name.startswith(".") and not {"/", "\\"} & {*name}
    if not plain or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise InputError(
            f"{kind} {name!a}: its name is that of a folder of records, so expected 1 to {LONGEST_NAME} bytes that can "
            "be printed, without slashes and no dot in front; give it another."
        )


def profile_names() -> list[str]:
    """Return the bundled profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))
