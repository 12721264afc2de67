"""``fpbench fetch``: download what a profile needs, for offline use."""

import argparse

HELP = "download what a profile needs, for offline use"
NOTE = (
    "Downloads the profile's hub models and data sets into the hub's own cache, at the revisions that the profile "
    "names (a branch is not pinned to a commit yet), and, where the profile measures tinyMMLU itself, its item "
    "parameters: from the authors' repository at a fixed commit, converted to plain arrays in $FPBENCH_CACHE (default: "
    "fpbench in the user's cache folder). Their digest is recorded on the first fetch and required afterwards."
)


def arguments(verb: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    verb.description = NOTE
    verb.add_argument("profile", metavar="PROFILE", help="a bundled profile or a .toml file")


def do(options: argparse.Namespace) -> int:
    """Fetch everything; say what and where."""
    from fpbench.models.loading import resolve
    from fpbench.runs import fetch
    from fpbench.runs.materials import Materials
    from fpbench.runs.profile import load_profile
    from fpbench.verbs.common import tell

    profile = load_profile(options.profile)
    for model in profile.models:
        print(f"model {model.label}: {resolve(model.path, revision=model.revision)}")
    Materials(profile).check()
    print(f"data: {', '.join(profile.data)}")
    if profile.data.get("tinymmlu", "bundled:").startswith("bundled:"):
        tell("tinyMMLU's item parameters are not needed by this profile")
    else:
        print(f"tinyMMLU's item parameters: {fetch.fetch_item_parameters(fetch.SOURCE)}")
    return 0
