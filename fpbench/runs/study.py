"""The paper's analyses as ordinary grids: variants of one method, or variants of one set, in one table."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.board.reported import figures
from fpbench.board.studies import study_table
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.fingerprints.candidates import with_candidates
from fpbench.models.progress import no_progress
from fpbench.registry import unknown
from fpbench.runs.api import Progress, run_profile
from fpbench.runs.plan import BASE
from fpbench.runs.profile import Profile, Variant
from fpbench.runs.store import write_text

if TYPE_CHECKING:
    from fpbench.runs.bench import Loading

METHOD = "mcedit_a"  # what the paper's ablation, number of targets and query length are measured with


@dataclass(frozen=True)
class Study:
    """What a study varies.

    Attributes:
        question: what it asks, in one sentence.
        variants: names of rows and how the method's hyper-parameters differ in each.
        candidates: how many candidates the set's fingerprints have, one set a number.
        reported: the paper's table, by the name of the row.
    """

    question: str
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {METHOD: {}})
    candidates: tuple[int, ...] = ()
    reported: str = ""


STUDIES = {
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
    "targets": Study(
        "How many candidate targets should a fingerprint have (the paper's Table 9)?",
        candidates=(1, 3, 5, 10),
        reported="number_of_targets_llama",
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
    """Run one of :data:`STUDIES` on a profile's models and sets and write ``study.md`` beside the leaderboard.

    Args:
        name: which study.
        profile: models, data, sizes, conditions; its methods are replaced.
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
    wanted = STUDIES[name]
    folder = Path(out)
    changes: dict[str, Any] = {
        "methods": tuple(wanted.variants),
        "variants": {
            label: Variant(method=METHOD, config=dict(config)) for label, config in wanted.variants.items() if config
        },
    }
    if wanted.candidates:
        changes |= _sets(wanted.candidates, profile, folder)
    rows = run_profile(profile.model_copy(update=changes), folder, loading, progress, say)
    variants = [
        (str(label), row)
        for model in profile.models
        for label in wanted.candidates or wanted.variants
        for row in rows
        if row["model"] == model.label and row["method"] != BASE
        if str(label) == (row["fingerprints"].rpartition("-")[2] if wanted.candidates else row["method"])
    ]
    published = figures()[wanted.reported]
    # The paper calls the method as it is "origin".
    table = study_table(wanted.question, variants, {METHOD: published.get("origin", {})} | published)
    write_text(folder / "study.md", table)
    return table, sum(len(row["failed"]) for row in rows)


def _sets(candidates: tuple[int, ...], profile: Profile, folder: Path) -> dict[str, Any]:
    """Write one set for each number of candidates; the words suit the tokenizer of the profile's one model."""
    from transformers import AutoTokenizer

    from fpbench.models.loading import resolve

    if len(profile.models) > 1:
        raise InputError(
            f"this study draws candidates for one tokenizer, found {len(profile.models)} models: choose one of "
            f"{', '.join(model.label for model in profile.models)} with --model."
        )
    (settings,) = profile.models
    tokenizer = AutoTokenizer.from_pretrained(resolve(settings.path, revision=settings.revision))
    files = {}
    for name in profile.fingerprints:
        for count in candidates:
            made = with_candidates(find_set(name, profile.sets, profile.seeds[0]), count, tokenizer)
            files[made.name] = str(folder / "sets" / f"{made.name}.jsonl")
            write_text(Path(files[made.name]), made.to_lines())
    return {"fingerprints": tuple(files), "sets": dict(profile.sets) | files}
