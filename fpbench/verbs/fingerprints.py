"""``fpbench fingerprints``: build, screen and seal sets."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpbench.errors import InputError, StorageError
from fpbench.verbs.common import add_loading, add_model, add_unconfined, chosen_profile, confine, prepare

HELP = "build, screen and seal sets of fingerprints"
PARTS = {
    "if": "ten garbled keys by the published recipe, or more",
    "nlf": "two-word upper-case English queries",
    "cf": "code-mixed queries, each the variant that the model finds least strange",
    "method": "what a method makes for a model, where it chooses triggers or targets itself",
    "check": "screen a set under a model, or check a revealed pair against what was sealed",
    "seal": "commit to a set, so that single pairs can be proved later",
    "reveal": "the proof of one sealed pair",
}


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parts = verb.add_subparsers(title="parts", metavar="PART", dest="part", required=True)
    add = parts.add_parser
    made = {name: add(name, help=text, description=text) for name, text in PARTS.items()}
    for name in ("if", "nlf", "cf", "method"):
        made[name].add_argument("--out", required=True, metavar="FILE", help="a .jsonl file that does not exist yet")
        made[name].add_argument("--count", type=int, metavar="N", help="number of fingerprints (default: 10)")
    made["if"].add_argument("--seed", type=int, default=42, help="42 gives the published keys (default: 42)")
    _drawn_arguments(made["nlf"])
    made["nlf"].add_argument("--model", metavar="M", help="draw new ones for its tokenizer (default: the written ten)")
    add_model(made["nlf"])
    _method_arguments(made["method"])
    _drawn_arguments(made["cf"])
    _cf_arguments(made["cf"])
    _check_arguments(made["check"])
    made["seal"].add_argument("set", metavar="SET", help=".jsonl or .json file")
    made["seal"].add_argument("--out", required=True, metavar="DIR", help="for SET.sealed.json and SET.openings.json")
    made["reveal"].add_argument("openings", metavar="OPENINGS", help="the private SET.openings.json")
    which = made["reveal"].add_mutually_exclusive_group(required=True)
    which.add_argument("--index", type=int, metavar="N", help="place in the set, from 1")
    which.add_argument("--trigger", metavar="TEXT", help="the trigger, exactly")
    made["reveal"].add_argument("--out", metavar="FILE", help="a file that does not exist yet (default: print it)")


def _drawn_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--words", type=int, metavar="N", help="words of each query, such as 2, 4 or 5 (default: 2)")
    part.add_argument("--candidates", type=int, default=5, metavar="N", help="targets a fingerprint (default: 5)")
    part.add_argument("--seed", type=int, default=42, help="of everything drawn (default: 42)")


def _cf_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("--model", required=True, metavar="M", help="to be fingerprinted: as `fpbench inject` takes it")
    part.add_argument("--languages", nargs="+", metavar="L", help="(default: the lexicon's, or de es fr ja zh)")
    part.add_argument("--queries", metavar="FILE", help="English queries, one a line (default: drawn from the lexicon)")
    part.add_argument("--random", action="store_true", help="draw a variant instead: the control cf_random")
    source = part.add_mutually_exclusive_group()
    source.add_argument("--lexicon", metavar="FILE", help="tab-separated: english, then a column a language")
    source.add_argument(
        "--translator",
        nargs="+",
        metavar="T",
        help="an NLLB or M2M100 model; LANGUAGE=MODEL for MarianMT; or URL MODEL of an OpenAI-compatible endpoint",
    )
    add_model(part)


def _method_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("name", metavar="NAME", help="of the method, as `fpbench list` has it")
    part.add_argument("--model", required=True, metavar="M", help="to be fingerprinted: as `fpbench inject` takes it")
    add_unconfined(part)
    add_loading(part)


def _check_arguments(part: argparse.ArgumentParser) -> None:
    part.add_argument("set", metavar="SET", help="built-in set, .jsonl or .json file; with --sealed a revealed pair")
    against = part.add_mutually_exclusive_group(required=True)
    against.add_argument("--model", metavar="M", help="the unfingerprinted model: folder, hub id, 'micro' …")
    against.add_argument("--sealed", metavar="FILE", help="the public SET.sealed.json")
    part.add_argument("--profile", default="micro", help="decoding and ordinary texts (default: micro)")
    add_loading(part)


def do(options: argparse.Namespace) -> int:
    """Do one part of the verb."""
    does = {"if": _if, "nlf": _nlf, "cf": _cf, "method": _method}
    does |= {"check": _check, "seal": _seal, "reveal": _reveal}
    does[options.part](options)
    return 0


def _if(options: argparse.Namespace) -> None:
    from fpbench.fingerprints.code_mixed import recipe_of
    from fpbench.fingerprints.instructional import instructional_set

    out = _new_set(options.out)
    fingerprints = instructional_set(_count(options), options.seed)
    _write(out, fingerprints, recipe_of(fingerprints, options.seed))


def _nlf(options: argparse.Namespace) -> None:
    from fpbench.fingerprints import FingerprintSet
    from fpbench.fingerprints.code_mixed import recipe_of
    from fpbench.fingerprints.natural import draw_natural_set, natural_set

    out, count = _new_set(options.out), _count(options)
    if options.model is None:
        whole = natural_set()
        if count > len(whole) or options.words is not None:
            raise InputError(f"the written set has two words a query and holds {len(whole)}; --model M draws others.")
        fingerprints = FingerprintSet(whole.name, whole.fingerprints[:count])
        _write(out, fingerprints, recipe_of(fingerprints, options.seed))
        return
    loading = prepare(options)
    from fpbench.models.checkpoints import checkpoint_digest, resolve
    from fpbench.models.loading import load_tokenizer

    length = 2 if options.words is None else options.words
    folder = resolve(options.model, revision=loading.revision, allow_pickle=loading.allow_pickle)
    tokenizer = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code)
    fingerprints = draw_natural_set(count, length, tokenizer, seed=options.seed, candidates=options.candidates)
    recipe = {"words": length, "candidates": options.candidates, "model": checkpoint_digest(folder)}
    _write(out, fingerprints, recipe_of(fingerprints, options.seed) | recipe)


def _cf(options: argparse.Namespace) -> None:
    out = _new_set(options.out)
    loading = prepare(options)
    from fpbench.fingerprints.code_mixed import code_mixed_set, draw_queries, read_queries
    from fpbench.fingerprints.translation import Lexicon, translator_of
    from fpbench.models.checkpoints import checkpoint_digest, resolve
    from fpbench.scoring.engine import limited_to

    lexicon = Lexicon.load(options.lexicon) if options.lexicon else Lexicon.shipped()
    translator = translator_of(options.translator, options.languages or ()) if options.translator else lexicon
    if options.queries is not None and (options.count is not None or options.words is not None):
        raise InputError("--queries decides number and length: leave out --count and --words.")
    queries = None if options.queries is None else read_queries(options.queries)
    folder = resolve(options.model, revision=loading.revision, allow_pickle=loading.allow_pickle)
    model, tokenizer = loading.load(folder)
    length = 2 if options.words is None else options.words
    queries = queries or draw_queries(lexicon, _count(options), length, tokenizer, options.seed)
    with limited_to(loading.token_budget):
        fingerprints, recipe = code_mixed_set(
            "cf_random" if options.random else "cf",
            queries,
            translator,
            model,
            tokenizer,
            languages=options.languages or (),
            candidates=options.candidates,
            seed=options.seed,
        )
    dtype = str(model.dtype).removeprefix("torch.")
    _write(out, fingerprints, recipe | {"model": checkpoint_digest(folder), "dtype": dtype})


def _method(options: argparse.Namespace) -> None:
    out, count = _new_set(options.out), _count(options)
    loading = prepare(options)
    confine(options, [options.name])
    from fpbench.methods.base import Base, InjectionContext
    from fpbench.models.checkpoints import checkpoint_digest, resolve
    from fpbench.models.prompts import render
    from fpbench.runs.injection import create_method
    from fpbench.runs.sets import own_set

    folder = resolve(options.model, revision=loading.revision, allow_pickle=loading.allow_pickle)
    model, tokenizer = loading.load(folder)
    prompt, seed = options.prompt or "raw", 42 if options.seed is None else options.seed
    context = InjectionContext(
        seed=seed,
        device=loading.device,
        render=lambda trigger: render(tokenizer, trigger, prompt),
        tokenizer=tokenizer,
        base=Base(folder, loading, prompt),
    )
    fingerprints, recipe = own_set(create_method(options.name, model, {}), model, tokenizer, count, context)
    dtype = str(model.dtype).removeprefix("torch.")
    _write(out, fingerprints, recipe | {"prompt": prompt, "model": checkpoint_digest(folder), "dtype": dtype})


def _check(options: argparse.Namespace) -> None:
    if options.sealed is not None:
        from fpbench.fingerprints.sealing import check, read_document

        found = check(read_document(options.set), read_document(options.sealed))
        print(f"sealed: {json.dumps(found.as_json(), ensure_ascii=False)}")
        return
    loading = prepare(options)
    from fpbench.runs.screening import screen_profile, table

    profile = chosen_profile(options, models=[options.model], methods=[], fingerprints=[options.set])
    print(table(screen_profile(profile, loading)))


def _seal(options: argparse.Namespace) -> None:
    from fpbench.fingerprints import load_fingerprints
    from fpbench.fingerprints.sealing import seal
    from fpbench.records.store import write_text

    fingerprints = load_fingerprints(options.set)
    public, private = (Path(options.out) / f"{fingerprints.name}.{kind}.json" for kind in ("sealed", "openings"))
    _new(private)
    _new(public)
    commitments, openings = seal(fingerprints)
    write_text(private, json.dumps(openings, indent=1, ensure_ascii=False) + "\n", mode=0o600)
    try:
        write_text(public, json.dumps(commitments, indent=1) + "\n")
    except StorageError:
        private.unlink(missing_ok=True)
        raise
    print(f"{public}: publish it\n{private}: keep it, nothing can be proved without it")


def _reveal(options: argparse.Namespace) -> None:
    from fpbench.fingerprints.sealing import read_document, reveal, triggers
    from fpbench.records.store import write_text

    openings = read_document(options.openings)
    trigger = options.trigger
    if trigger is None:
        sealed = triggers(openings)
        if not 1 <= options.index <= len(sealed):
            raise InputError(f"--index {options.index}: expected a place from 1 to {len(sealed)}.")
        trigger = sealed[options.index - 1]
    text = json.dumps(reveal(openings, trigger), indent=1, ensure_ascii=False)
    if options.out is None:
        print(text)
        return
    _new(Path(options.out))
    write_text(Path(options.out), text + "\n", mode=0o600)
    print(f"{options.out}: hand it to whoever checks")


def _count(options: argparse.Namespace) -> int:
    count = 10 if options.count is None else int(options.count)
    if count < 1:
        raise InputError(f"--count {count}: expected 1 or more.")
    return count


def _new_set(out: str) -> Path:
    from fpbench.runs.sets import recipe_path

    path = Path(out)
    if path.suffix != ".jsonl":
        raise InputError(f"--out {out}: expected a name that ends in .jsonl.")
    _new(recipe_path(path))
    _new(path)
    return path


def _new(path: Path) -> None:
    from fpbench.records.store import check_writable

    if path.exists():
        raise InputError(f"{path} exists: choose another name, nothing was overwritten.")
    check_writable(path.parent)


def _write(out: Path, fingerprints: Any, recipe: Mapping[str, Any]) -> None:
    from fpbench.runs.sets import recipe_path, write_set

    write_set(out, fingerprints, recipe)
    print(f"{out}: {len(fingerprints)} fingerprints, their recipe in {recipe_path(out).name}")
