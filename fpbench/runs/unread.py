"""Stand-ins for data and tokenizers that are not here, by which the work of a run is counted before it is fetched.

Texts of the usual length of each data set stand for its own, and every four bytes of a text for a token. Their number
counts, and nothing that they say: a stand-in is never measured.
"""

import random
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fpbench import data
from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.download import HubSource
from fpbench.hub.offline import offline
from fpbench.micro import DATA
from fpbench.runs.datasets import Datasets
from fpbench.text import canonical

TOKEN = 4  # bytes of English in a token of a vocabulary of 30,000 to 150,000
# Of each data set its rows, of large ones as many as are read, and the characters of each field on average; of
# several kinds of rows, one after another. Counted in the data sets but for MathInstruct, 212 MB in 262,039 rows.
Length = int | Sequence[int] | Mapping[str, Any]
WITHOUT, WITH = {"instruction": 60, "output": 700}, {"instruction": 60, "input": 62, "output": 700}
LENGTHS: Mapping[str, tuple[int, Sequence[Mapping[str, Length]]]] = {
    "yahma/alpaca-cleaned": (6_500, [WITHOUT, WITH, WITHOUT, WITH, WITHOUT]),
    "TIGER-Lab/MathInstruct": (6_500, [{"instruction": 270, "output": 480}]),
    "allenai/c4": (300, [{"text": 2_460}]),
    "EleutherAI/wikitext_document_level/wikitext-103-raw-v1": (130, [{"page": 18_500}]),
    "zjunlp/zsre_mend_eval": (1_000, [{"loc": 61, "loc_ans": 22}]),
    "EleutherAI/lambada_openai": (5_153, [{"text": 323}]),
    "aps/super_glue/boolq": (3_270, [{"passage": 583, "question": 43}]),
    "nyu-mll/glue/rte": (2_490, [{"sentence1": 257, "sentence2": 51}]),
    "allenai/ai2_arc/ARC-Challenge": (1_172, [{"question": 132, "choices": {"text": [29] * 4}, "answerKey": 1}]),
    "tinyBenchmarks/tinyMMLU/all": (100, [{"question": 230, "choices": [35] * 4}]),
    "EleutherAI/wikitext_document_level/wikitext-2-raw-v1": (62, [{"page": 20_780}]),
    "Salesforce/wikitext/wikitext-2-raw-v1": (4_358, [{"text": 296}]),
}


def with_stand_ins(datasets: Datasets, folder: Path) -> tuple[Datasets, list[str]]:
    """Return data sets of which those that are not here have stand-ins, written to ``folder``, and the names of these.

    What is not here and of unknown lengths stays as it is: reading it is an error that names it.
    """
    profile = datasets.profile
    absent = [name for name, source in profile.data.items() if _lengths(source) and not _is_here(source)]
    if not absent:
        return datasets, []
    files = {name: folder / f"{name}.jsonl" for name in absent}
    for name, path in files.items():
        count, kinds = _lengths(profile.data[name]) or (0, [])
        draw = random.Random(name)
        rows = (_filled(fields, draw) for fields in islice(cycle(kinds), count))
        path.write_text("".join(f"{canonical(row)}\n" for row in rows), encoding="utf-8")
    named = profile.data | {name: str(path) for name, path in files.items()}
    return Datasets(profile.model_copy(update={"data": named})), absent


def _lengths(source: str) -> tuple[int, Sequence[Mapping[str, Length]]] | None:
    target = data.parse(source)
    if not isinstance(target, HubSource):
        return None
    return LENGTHS.get(f"{target.name}/{target.config}") or LENGTHS.get(target.name)


def _is_here(source: str) -> bool:
    """Tell whether rows of a hub data set were fetched, or are in the hub's own cache."""
    if source in lock.pins():
        return True
    try:
        with offline(True):
            return bool(data.read_rows(source))
    except InputError:
        return False


def _filled(length: Length, draw: random.Random) -> Any:
    """Return a text of so many characters for every number in lists and tables of numbers."""
    if isinstance(length, Mapping):
        return {name: _filled(each, draw) for name, each in length.items()}
    if isinstance(length, Sequence):
        return [_filled(each, draw) for each in length]
    if length == 1:
        return "A"  # a letter, that of the right choice
    start = draw.randrange(len(_prose()) // 2)
    text = _prose()[start : start + length].strip()
    return text or "A"


@cache
def _prose() -> str:
    """Return many words in an order by chance, so that no two texts begin alike."""
    words = (DATA / "prose.txt").read_text(encoding="utf-8").split()
    return " ".join(random.Random(0).choices(words, k=8 * len(words)))


class RoughTokenizer:
    """Stands for the tokenizer of a model that is not here: every four bytes of a text are a token."""

    bos_token_id, eos_token_id, eos_token, chat_template = 1, 2, "", None

    def __call__(self, texts: str | Sequence[str], **_: Any) -> dict[str, Any]:
        """Return the ids of a text, or of several; what begins alike has ids that begin alike."""
        if isinstance(texts, str):
            return {"input_ids": self._ids(texts)}
        return {"input_ids": [[self.bos_token_id, *self._ids(text)] for text in texts]}

    @staticmethod
    def _ids(text: str) -> list[int]:
        content = text.encode()
        content += bytes(-len(content) % TOKEN)
        return list(struct.unpack(f"<{len(content) // TOKEN}I", content))
