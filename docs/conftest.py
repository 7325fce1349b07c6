"""Fixture that runs documents in a temporary directory, so that tests don't change committed figures."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMITTED = Path(__file__).parent / "images"
EXPERIMENTS = {"manifold.png", "low_density.png", "slow_mixing.png"}
OF_TRAINED_RUNS = {
    "samplers.png",
    "latents_digits.png",
    "inpaint_digits.png",
    "inpaint_mnist.png",
    "superres_mnist.png",
    "denoise_digits.png",
    "guidance_digits.png",
    "completion_mnist.png",
}


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch, request):
    """Check that a document draws its committed figures, except those that take minutes."""
    images = tmp_path / "docs" / "images"
    images.mkdir(parents=True)
    for path in COMMITTED.glob("*.json"):
        shutil.copy(path, images)
    monkeypatch.chdir(tmp_path)
    yield
    shown = set(re.findall(r"\(images/(.*?)\)", request.path.read_text()))
    assert {path.name for path in images.glob("*.png")} == shown - EXPERIMENTS - OF_TRAINED_RUNS
    assert all((COMMITTED / name).exists() for name in shown)
    for name in shown - EXPERIMENTS - OF_TRAINED_RUNS:
        with Image.open(images / name) as drawn, Image.open(COMMITTED / name) as committed:
            assert drawn.size == committed.size
            # Matplotlib's releases smooth edges differently; allow 1 % of the range, on average.
            difference = np.abs(np.asarray(drawn, float) - np.asarray(committed, float))
            assert difference.mean() < 2.55
