"""Data sets of the hub, read at one commit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

    from fpbench.hub.refusals import Wanted


@dataclass(frozen=True)
class HubSource:
    """A split of a data set of the hub; ``str`` gives the source as a profile writes it."""

    name: str
    config: str | None
    revision: str
    split: str

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"hub:{self.name}{config}@{self.revision}:{self.split}"


def wanted_rows(source: HubSource) -> "Wanted":
    """What messages call a data set."""
    from fpbench.hub.refusals import Wanted

    return Wanted(f"data source {str(source)!r}", source.name, "dataset")


def commit_of(source: HubSource) -> str:
    """The commit that a source's revision stands for now.

    Raises:
        InputError: if the hub cannot be asked, or has no such data set or revision.
    """
    from huggingface_hub import HfApi

    from fpbench.hub.refusals import SECONDS, asking

    with asking(wanted_rows(source)):
        sha = HfApi().dataset_info(source.name, revision=source.revision, timeout=SECONDS).sha
    assert sha is not None, "the hub names the commit of every revision"
    return sha


def load(source: HubSource, commit: str) -> "Dataset":
    """Download a split at a commit.

    Raises:
        InputError: if it cannot be had at that commit.
    """
    import datasets

    from fpbench.hub.refusals import FAILURES, check_access, refusal

    wanted = wanted_rows(source)
    try:
        builder = datasets.load_dataset_builder(source.name, source.config, revision=commit)
        if commit not in str(builder.base_path):
            raise OSError("datasets fell back on another version that it has kept")
        builder.download_and_prepare()
        return builder.as_dataset(split=source.split)
    except (*FAILURES, datasets.exceptions.DatasetsError) as error:
        check_access(wanted)  # `datasets` loses the hub's own reason
        raise refusal(wanted, error) from None
