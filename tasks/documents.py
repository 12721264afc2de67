"""The documents of the task files: every source that fpbench reads, as the one split ``test`` that lm-eval scores.

lm-eval calls these functions with a task's ``metadata``: the source, the fields that a row must have, and more that
only lm-eval uses.
"""

from typing import Any

from datasets import Dataset

from fpbench.data import Row, read_rows, read_texts, require_fields


def rows(source: str, fields: list[str], **_: Any) -> dict[str, Dataset]:
    """Read rows, keeping the fields that the template uses.

    Raises:
        fpbench.errors.InputError: The source cannot be read, or a row lacks a field.
    """
    return _split(read_rows(source), source, fields)


def boolq(source: str, fields: list[str], **_: Any) -> dict[str, Dataset]:
    """Read BoolQ rows in SuperGLUE's form (``label`` 0 or 1) or in the original release's (``answer`` a truth value).

    Raises:
        fpbench.errors.InputError: The source cannot be read, or a row lacks a field.
    """
    found = [{"label": row["answer"]} | row if "answer" in row else row for row in read_rows(source)]
    return _split(found, source, fields)


def pages(source: str, **_: Any) -> dict[str, Dataset]:
    """Read documents as the pages of lm-eval's ``wikitext``.

    Raises:
        fpbench.errors.InputError: The source cannot be read.
    """
    return {"test": Dataset.from_list([{"page": text} for text in read_texts(source)])}


def _split(found: list[Row], source: str, fields: list[str]) -> dict[str, Dataset]:
    checked = require_fields(found, fields, source)
    return {"test": Dataset.from_list([{field: row[field] for field in fields} for row in checked])}
