"""The paper's analyses as ordinary grids: variants of one method, or of one set, in one table and one figure."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from fpbench.board.figures import study_figure
from fpbench.board.reported import published
from fpbench.board.row import Row
from fpbench.board.tables import study_table
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.fingerprints.code_mixed import code_mixed_set, draw_queries
from fpbench.fingerprints.natural import with_candidates
from fpbench.fingerprints.translation import Lexicon
from fpbench.models.checkpoints import resolve
from fpbench.models.loading import Loading, load_tokenizer
from fpbench.records.cell import BASE
from fpbench.records.store import write_bytes, write_text
from fpbench.registry import unknown
from fpbench.runs.api import measure
from fpbench.runs.engine import Watch
from fpbench.runs.plan import Job, plan
from fpbench.runs.profile import Profile, Variant
from fpbench.runs.sets import write_set

METHOD = "mcedit_a"  # what all of the paper's analyses but that of the kinds are measured with
KINDS = ("if", "nlf", "cf", "cf_random")
CANDIDATES = (1, 3, 5, 10)
LENGTHS = (2, 4, 5)


@dataclass(frozen=True)
class Study:
    """The variants of a study; the profile gives the rest."""

    question: str
    variants: Mapping[str, Mapping[str, Any]] | None = None  # by row, how the method's hyper-parameters differ
    sets: Callable[[Profile, Path, Loading], dict[str, str]] | None = None  # writes sets to compare, returns the files
    kinds: tuple[str, ...] = ()  # built-in sets that it compares
    reported: str | None = None  # name of the paper's table

    def label(self, row: Row) -> str:
        """Return what a row of the leaderboard is called in this study."""
        if self.kinds:
            return f"{row.fingerprints} · {row.method}"
        return row.fingerprints if self.sets else row.method


def _numbers_of_candidates(profile: Profile, folder: Path, loading: Loading) -> dict[str, str]:
    """Write the profile's one set with more and fewer candidates, words that suit the tokenizer of its one model."""
    checkpoint, name = _single(profile, loading)
    tokenizer, files = load_tokenizer(checkpoint, trust_remote_code=loading.trust_remote_code), {}
    for count in CANDIDATES:
        made = with_candidates(find_set(name, profile.sets, profile.seeds[0]), count, tokenizer)
        path = folder / f"{made.name}.jsonl"
        write_text(path, made.to_lines())
        files[made.name] = str(path)
    return files


def _lengths(profile: Profile, folder: Path, loading: Loading) -> dict[str, str]:
    """Write code-mixed sets of queries of several lengths, variants drawn and not selected, as in appendix E."""
    from fpbench.scoring.engine import limited_to

    model, tokenizer = loading.load(_single(profile, loading)[0])
    files, lexicon, seed = {}, Lexicon.shipped(), profile.seeds[0]
    for length in LENGTHS:
        queries = draw_queries(lexicon, 10, length, tokenizer, seed)
        with limited_to(loading.token_budget):
            made, recipe = code_mixed_set("cf_random", queries, lexicon, model, tokenizer, seed=seed)
        path = folder / f"{length}-words.jsonl"
        write_set(path, made, recipe)
        files[path.stem] = str(path)
    return files


def _single(profile: Profile, loading: Loading) -> tuple[Path, str]:
    """Return the checkpoint of the profile's one model, and its one set; :class:`InputError` if it has more."""
    labels = [model.label for model in profile.models]
    for what, names in (("--model", labels), ("--fingerprints", [*profile.fingerprints])):
        if len(names) > 1:
            raise InputError(f"this study varies one set for one model, found {', '.join(names)}: choose with {what}.")
    (model,) = profile.models
    return resolve(model.path, revision=model.revision, allow_pickle=loading.allow_pickle), profile.fingerprints[0]


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
    loading: Loading,
    watch: Watch | None = None,
) -> tuple[str, int]:
    """Run one of :data:`STUDIES` on a profile's models and write ``study.md`` and its figure beside the leaderboard.

    Return the table as Markdown, and how many cells failed. What the study varies replaces that of the profile. A
    killed study resumes in ``out``. :class:`InputError` for an unknown study, or what
    :func:`~fpbench.runs.api.measure` refuses.
    """
    if name not in STUDIES:
        raise unknown("study", name, list(STUDIES))
    wanted, folder = STUDIES[name], Path(out)
    changes: dict[str, Any] = {}
    if wanted.variants is not None:
        changed = {label: dict(config) for label, config in wanted.variants.items() if label != METHOD}
        changes["methods"] = tuple(wanted.variants)
        changes["variants"] = {label: Variant(method=METHOD, config=config) for label, config in changed.items()}
    if wanted.kinds:
        changes["fingerprints"] = wanted.kinds
    if wanted.sets:
        files = wanted.sets(profile, folder / "sets", loading)
        changes |= {"fingerprints": tuple(files), "sets": dict(profile.sets) | files}
    profile = profile.model_copy(update=changes)
    rows = measure(Job.of(profile, loading, folder), plan(profile), watch)
    shown = _in_order(wanted, profile, rows)
    table = study_table(wanted.question, shown, _reported(wanted))
    write_text(folder / "study.md", table)
    if find_spec("matplotlib"):
        write_bytes(folder / "study.svg", study_figure(wanted.question, shown))
    else:
        (watch or Watch()).say("no figure was drawn: that needs matplotlib (pip install 'fpbench[plots]')")
    return table, sum(len(row.failed) for row in rows)


def _in_order(wanted: Study, profile: Profile, rows: Sequence[Row]) -> list[tuple[str, Row]]:
    places = product([model.label for model in profile.models], profile.fingerprints, profile.methods)
    found = {row.key: row for row in rows if row.method != BASE}
    return [(wanted.label(found[place]), found[place]) for place in places if place in found]


def _reported(wanted: Study) -> Mapping[str, Any]:
    if wanted.reported is None:
        return {}
    found: dict[str, Any] = published()[wanted.reported]
    if wanted.sets is not None:
        return {label: each for number, each in found.items() for label in (f"{number}-words", f"nlf-{number}")}
    # The paper calls the method as it is "origin".
    return {METHOD: found["origin"]} | found
