"""The documents run in a directory of their own, so that a test leaves the committed figures alone."""

import re
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch, request):
    """What a document draws, it shows, and is committed."""
    (tmp_path / "docs" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    yield
    drawn = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    shown = set(re.findall(r"\(images/(.*?)\)", request.path.read_text()))
    committed = {path.name for path in (Path(__file__).parent / "images").iterdir()}
    assert drawn <= shown <= committed
