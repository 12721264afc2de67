"""The documents as a site: mkdocs-material builds every page, and every document is one of them."""

import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT


def pages(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]


def test_the_site_is_built_and_has_every_document(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'fpbench[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "A fingerprint" in (tmp_path / "site" / "leaderboard" / "index.html").read_text(encoding="utf-8")


def test_every_document_is_in_the_navigation():
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
