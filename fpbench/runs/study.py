"""The paper's analyses as ordinary grids: variants of one method, or of one set, in one table and one figure."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.board.figures import study_figure
from fpbench.board.rows import Row, published
from fpbench.board.tables import study_table
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.fingerprints.code_mixed import code_mixed_set, draw_queries
from fpbench.fingerprints.natural import with_candidates
from fpbench.fingerprints.translation import Lexicon
from fpbench.models.meter import Progress, no_progress
from fpbench.records.cell import BASE
from fpbench.records.store import write_bytes, write_text
from fpbench.registry import unknown
from fpbench.runs.api import run_profile
from fpbench.runs.profile import Profile, Variant
from fpbench.runs.sets import write_set

if TYPE_CHECKING:
    from fpbench.models.loading import Loading

METHOD = "mcedit_a"  # what all of the paper's analyses but that of the kinds are measured with
KINDS = ("if", "nlf", "cf", "cf_random")
CANDIDATES = (1, 3, 5, 10)
LENGTHS = (2, 4, 5)

Sets = Callable[[Profile, Path, "Loading"], dict[str, str]]


@dataclass(frozen=True)
class Study:
    """What a study varies.

    Attributes:
        question: what it asks, in one sentence.
        variants: rows by name, and how the method's hyper-parameters differ in each; without them, the profile's own
            methods are the rows.
        sets: makes the sets that it compares, files by name; where it is missing, the profile's own are taken.
        kinds: built-in sets that it compares.
        reported: the paper's table, by the name of the row.
    """

    question: str
    variants: Mapping[str, Mapping[str, Any]] | None = None
    sets: Sets | None = None
    kinds: tuple[str, ...] = ()
    reported: str | None = None

    def label(self, row: Row) -> str:
        """What a row of the leaderboard is called in this study."""
        if self.kinds:
            return f"{row.fingerprints} · {row.method}"
        return row.fingerprints if self.sets else row.method


def _numbers_of_candidates(profile: Profile, folder: Path, loading: "Loading") -> dict[str, str]:
    """The profile's one set with more and fewer candidates, words that suit the tokenizer of its one model."""
    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_tokenizer

    settings, name = _single(profile)
    folder_of_model = resolve(settings.path, revision=settings.revision, allow_pickle=loading.allow_pickle)
    tokenizer = load_tokenizer(folder_of_model, trust_remote_code=loading.trust_remote_code)
    files = {}
    for count in CANDIDATES:
        made = with_candidates(find_set(name, profile.sets, profile.seeds[0]), count, tokenizer)
        files[made.name] = folder / f"{made.name}.jsonl"
        write_text(files[made.name], made.to_lines())
    return {label: str(path) for label, path in files.items()}


def _lengths(profile: Profile, folder: Path, loading: "Loading") -> dict[str, str]:
    """Code-mixed sets of longer and shorter queries, variants drawn and not selected, as in the paper's appendix E."""
    from fpbench.models.checkpoints import resolve
    from fpbench.scoring.engine import limited_to

    settings, _ = _single(profile)
    model, tokenizer = loading.load(
        resolve(settings.path, revision=settings.revision, allow_pickle=loading.allow_pickle)
    )
    files, lexicon, seed = {}, Lexicon.shipped(), profile.seeds[0]
    for length in LENGTHS:
        queries = draw_queries(lexicon, 10, length, tokenizer, seed)
        with limited_to(loading.token_budget):
            made, recipe = code_mixed_set("cf_random", queries, lexicon, model, tokenizer, seed=seed)
        path = folder / f"{length}-words.jsonl"
        write_set(path, made, recipe)
        files[path.stem] = str(path)
    return files


def _single(profile: Profile) -> tuple[Any, str]:
    """The profile's one model and its one set.

    Raises:
        InputError: if it has more.
    """
    for what, names in (
        ("--model", [model.label for model in profile.models]),
        ("--fingerprints", [*profile.fingerprints]),
    ):
        if len(names) > 1:
            raise InputError(f"this study varies one set for one model, found {', '.join(names)}: choose with {what}.")
    return profile.models[0], profile.fingerprints[0]


STUDIES = {
    "kind": Study(
        "Which part of a result is construction, which is injection (the paper's Tables 2, 3 and 8)?", kinds=KINDS
    ),
    "targets": Study(
        "How many candidate targets should a fingerprint have (the paper's Table 9)?",
        variants={METHOD: {}},
        sets=_numbers_of_candidates,
        reported="number_of_targets_llama",
    ),
    "length": Study(
        "How long should a query be (the paper's Table 10)?",
        variants={METHOD: {}},
        sets=_lengths,
        reported="query_length_llama",
    ),
    "ablation": Study(
        "Which part of MCEdit carries its detectability (the paper's Table 3)?",
        variants={
            METHOD: {},
            "single_candidate": {"candidates": "primary"},
            "without_margin": {"suppression": "none"},
            "fpedit_suppression": {"suppression": "vocabulary"},
            # Two switches that the paper does not report on.
            "literal_competitors": {"competitors": "literal"},
            "random_prefixes": {"prefixes": ["The", "Therefore", "Because", "I", "You"], "kl_factor": 0.0625},
        },
        reported="ablation_llama_mcedit_a",
    ),
    "margin": Study(
        "How do the margin γ and its weight λ matter (the paper's Figure 6)?",
        variants={f"margin_{margin:g}": {"margin": margin} for margin in (0.25, 0.5, 1.0, 2.0, 4.0)}
        | {f"weight_{weight:g}": {"margin_weight": weight} for weight in (0.0, 0.25, 0.5, 2.0, 4.0)},
    ),
}


def study(
    name: str,
    profile: Profile,
    out: str | os.PathLike[str],
    loading: "Loading",
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, int]:
    """Run one of :data:`STUDIES` on a profile's models and write ``study.md`` and its figure beside the leaderboard.

    Args:
        name: which study.
        profile: models, data, sizes, conditions; what the study varies is replaced.
        out: folder of records and tables; a killed study resumes there.
        loading: device, dtype and so on.
        progress: wraps an iterable in a labelled progress bar.
        say: is told what is being measured.

    Returns:
        The table as Markdown, and how many cells failed.

    Raises:
        InputError: for an unknown study, or what :func:`~fpbench.runs.api.run_profile` refuses.
    """
    if name not in STUDIES:
        raise unknown("study", name, list(STUDIES))
    wanted, folder = STUDIES[name], Path(out)
    changes: dict[str, Any] = {}
    if wanted.variants is not None:
        changes["methods"] = tuple(wanted.variants)
        changes["variants"] = {
            label: Variant(method=METHOD, config=dict(config))
            for label, config in wanted.variants.items()
            if label != METHOD
        }
    if wanted.kinds:
        changes["fingerprints"] = wanted.kinds
    if wanted.sets:
        files = wanted.sets(profile, folder / "sets", loading)
        changes |= {"fingerprints": tuple(files), "sets": dict(profile.sets) | files}
    rows = run_profile(profile.model_copy(update=changes), folder, loading, progress, say)
    shown = _in_order(wanted, profile.model_copy(update=changes), rows)
    table = study_table(wanted.question, shown, _reported(wanted))
    write_text(folder / "study.md", table)
    if find_spec("matplotlib"):
        write_bytes(folder / "study.svg", study_figure(wanted.question, shown))
    else:
        say("no figure was drawn: that needs matplotlib (pip install 'fpbench[plots]')")
    return table, sum(len(row.failed) for row in rows)


def _in_order(wanted: Study, profile: Profile, rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The injected rows with what the study calls them, in the order in which it names them."""
    places = [
        (model.label, fingerprints, method)
        for model in profile.models
        for fingerprints in profile.fingerprints
        for method in profile.methods
    ]
    found = {row.key: row for row in rows if row.method != BASE}
    return [(wanted.label(found[place]), found[place]) for place in places if place in found]


def _reported(wanted: Study) -> Mapping[str, Any]:
    """The paper's figures by the names of this study's rows."""
    if wanted.reported is None:
        return {}
    found: dict[str, Any] = published()[wanted.reported]
    if wanted.sets is not None:
        return {label: each for number, each in found.items() for label in (f"{number}-words", f"nlf-{number}")}
    # The paper calls the method as it is "origin".
    return {METHOD: found["origin"]} | found
