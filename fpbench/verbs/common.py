"""Pieces that several verbs share: options, progress, and lines on standard error."""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpbench.errors import InputError


def watch(options: argparse.Namespace) -> Any:
    """Return what shows on standard error how far the work is; nothing with ``--quiet``."""
    from fpbench.runs.display import Display
    from fpbench.runs.engine import Watch

    return Watch() if options.quiet else Display()


def tell(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


def add_model(verb: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the options of every verb that loads a model; return their group."""
    group = verb.add_argument_group("model and measurement")
    group.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, or the CPU)")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="(default: the profile's)")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--token-budget", type=int, metavar="N", help="padded tokens in one forward pass")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a checkpoint")
    group.add_argument("--allow-pickle", action="store_true", help="read pickle weights where there are no others")
    group.add_argument("--offline", action="store_true", help="never ask a model hub")
    said = group.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="print results and errors, no progress")
    said.add_argument(
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print what is logged (FPBENCH_LOG=debug: all of it)",
    )
    return group


def add_profile(verb: argparse.ArgumentParser, what: str) -> None:
    """Add the options of every verb that measures or injects as a profile says; ``what`` it takes from it."""
    verb.add_argument(
        "--profile", metavar="P", help=f"bundled profile or .toml file: {what} (default: the one that has the model)"
    )
    verb.add_argument("--full", action="store_true", help="the protocol's sizes in place of the profile's, for a GPU")


def add_limit(verb: argparse.ArgumentParser) -> None:
    """Add the option of every verb that can measure a few items only."""
    said = "smoke run: N items at most a measurement and a modification; its rows say so and are never ranked"
    verb.add_argument("--limit", type=int, metavar="N", help=said)


def add_condition(verb: argparse.ArgumentParser, default: str = "the profile's") -> None:
    """Add the option of every verb that measures under conditions."""
    said = f"conditions, such as nf4+suppress@3, or drift, removal, all (default: {default})"
    verb.add_argument("--condition", nargs="+", metavar="C", help=said)


def add_set_size(verb: argparse.ArgumentParser) -> None:
    """Add the option of every verb that builds the sets it measures."""
    said = "fingerprints of each built-in set (default: 10); a file has its own"
    verb.add_argument("--set-size", type=int, metavar="N", help=said)


def add_loading(verb: argparse.ArgumentParser) -> None:
    """Add the options of every verb that measures a model."""
    group = add_model(verb)
    group.add_argument("--prompt", choices=["raw", "chat"], help="raw trigger text, or the model's chat template")
    if not any(action.dest == "seeds" for action in verb._actions):
        group.add_argument("--seed", type=int, help="seed of injection and modifications (default: the profile's)")


def add_unconfined(verb: argparse.ArgumentParser) -> None:
    """Add the option of every verb that runs submissions."""
    verb.add_argument(
        "--unconfined",
        action="store_true",
        help="run a submission where this machine does not keep it from your files, network and processes",
    )


def confine(options: argparse.Namespace, methods: Iterable[str], conditions: Iterable[str] = ()) -> None:
    """See that submissions among methods and parts of conditions are confined here, and say so if they are not.

    Raises:
        InputError: if this machine does not keep every promise and ``--unconfined`` was not given.
    """
    from fpbench.adversaries.conditions import name_of, parts
    from fpbench.submissions.discovery import Discovery

    attacks = {name_of(part) for condition in conditions for part in parts(condition)}
    if not set(methods) & set(Discovery().names()) and not attacks & set(Discovery(attacks=True).names()):
        return
    from fpbench.submissions.process import require

    for line in require(options.unconfined).warnings():
        tell(line)


def add_question(verb: argparse.ArgumentParser) -> None:
    """Add the options of every verb that tests a suspect's answers."""
    add, suspect = verb.add_argument, verb.add_mutually_exclusive_group(required=True)
    suspect.add_argument("model", nargs="?", metavar="MODEL", help="folder, .gguf file, hub id, 'micro' or 'smollm2'")
    suspect.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, such as http://HOST:8000/v1")
    add(
        "--fingerprints",
        required=True,
        metavar="S",
        help="built-in set or SET.openings.json; a .jsonl or .json file, which gives a match, no claim",
    )
    add("--base", metavar="B", help="the unfingerprinted model, on which chance is measured")
    add("--unrelated", nargs="+", default=[], metavar="M", help="further models without the fingerprints")
    add("--level", type=float, default=1e-3, metavar="P", help="probability of a false claim at most (default: 1e-3)")
    add("--budget", type=int, metavar="N", help="requests at most, failed ones included")
    add("--served-model", metavar="NAME", help="the model's name on its server (default: not sent)")
    add(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the server's API key (default: FPBENCH_API_KEY; OPENAI_API_KEY is sent to "
        "api.openai.com alone)",
    )
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds that a request may take (default: 60)")
    add("--profile", default="micro", help="decoding (default: micro)")


def asked(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return profile, question and loading from the options; :class:`InputError` for a wrong URL, number or profile."""
    if options.endpoint is not None and "://" not in options.endpoint:  # before anything slow is imported
        raise InputError(f"--endpoint {options.endpoint}: expected a URL such as http://127.0.0.1:8000/v1.")
    loading = prepare(options)
    from fpbench.ownership.verify import Question

    question = Question(
        suspect=options.endpoint or options.model,
        unrelated=tuple(options.unrelated),
        transcript=None if options.transcript is None else Path(options.transcript),
        **_named(options, "base", "level", "budget", "served_model", "timeout", "api_key_env"),
        adversary=getattr(options, "adversary", None),
        evidence=getattr(options, "evidence", "prefix"),
    )
    profile = chosen_profile(options, models=question.decoded_like, methods=[], fingerprints=[options.fingerprints])
    return profile, question, loading


def chosen_profile(options: argparse.Namespace, **changes: Any) -> Any:
    """Return the profile that the options name, with their prompt, seeds and revision and a verb's own changes."""
    from fpbench.runs.profile import load_profile, profile_of

    name = profile_of(changes.get("models") or (), options.profile)
    seeds = options.seeds if "seeds" in options else None if options.seed is None else [options.seed]
    full = "full" in options and options.full
    limit = options.limit if "limit" in options else None
    given = {"prompt": options.prompt, "dtype": options.dtype, "seeds": seeds, "limit": limit}
    profile = load_profile(name, full=full, **given, **changes)
    if options.revision is None:
        return profile
    models = tuple(each.model_copy(update={"revision": options.revision}) for each in profile.models)
    return profile.model_copy(update={"models": models})


def chosen_grid(options: argparse.Namespace, **changes: Any) -> Any:
    """Return :func:`chosen_profile` with the models, sets and conditions of the options, where the verb has these."""
    conditions = options.condition if "condition" in options else None
    size = options.set_size if "set_size" in options else None
    return chosen_profile(
        options,
        models=options.model,
        fingerprints=options.fingerprints,
        set_size=size,
        conditions=conditions,
        **changes,
    )


def prepare(options: argparse.Namespace) -> Any:
    """Set the offline switch, which must precede the import of transformers, and return the loading options."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    from fpbench.models.loading import Loading, pick_device

    given = _named(options, "dtype", "revision", "token_budget", "trust_remote_code", "allow_pickle")
    if "unconfined" in options:
        given["unconfined"] = options.unconfined
    return Loading(pick_device(options.device), **given)


def _named(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}
