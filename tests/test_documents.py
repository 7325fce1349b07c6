"""Everything in the README runs; commands, settings and links in the documents exist."""

import contextlib
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from ncsn_jax.config import Config, MlpModel, Ncsnv2Model, flatten
from tests.test_bad_input import write_official
from tests.test_main import replaced_network

ROOT = Path(main.__file__).parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TINY = [
    "--config.training.num_steps=2",
    "--config.training.batch_size=4",
    "--config.training.eval_examples=4",
    "--config.training.preview_samples=1",
    "--config.sampling.steps_per_scale=1",
    "--config.sampling.num_samples=4",
    "--config.sampling.batch_size=4",
]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python main.py` in a document, in their order."""
    text = re.sub(r"\\\n\s*", " ", text)  # a command may continue on the next line
    found = re.findall(r"`python (main\.py[^`]*)`|^python (main\.py[^#\n]*)", text, re.MULTILINE)
    return [shlex.split((inline or block).replace("\\|", "|")) for inline, block in found]


README = (ROOT / "README.md").read_text()


def test_the_readme_fits_on_two_screens():
    lines = README.splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 160


def test_readme_commands_run_in_their_order(tmp_path, monkeypatch, official, data_dir, tiny_score):
    """In the README's order, at the smallest size; digits replace MNIST, which would be downloaded."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    write_official(tmp_path / "official.pth", official)
    ran = commands(README)
    assert len(ran) >= 10
    for arguments in ran:
        arguments = [word.replace("configs/mnist.py:small", "configs/digits.py") for word in arguments]
        mode = arguments[arguments.index("--mode") + 1] if "--mode" in arguments else "train"
        is_of_photos = any("photos" in word for word in arguments)
        if mode != "report" and not is_of_photos:
            arguments.append(f"--config.data.data_dir={data_dir}")
        if mode == "train":
            scales = [] if is_of_photos else ["--config.model.num_scales=2"]
            arguments += [*TINY, *scales]
        if mode == "evaluate":
            arguments += ["--num_samples=4", "--config.evaluation.metrics=frechet,loss"]
            arguments += ["--config.evaluation.features=pixels", "--config.evaluation.loss_examples=4"]
        if mode == "inpaint":
            arguments = [word.replace("0:8", "0:2") for word in arguments] + ["--num_samples=1"]
        # An official checkpoint is of its own network.
        with contextlib.nullcontext() if mode == "import" else replaced_network(tiny_score):
            assert main.main(arguments) == 0, arguments
    runs = {path.name for path in (tmp_path / "runs").iterdir()}
    assert runs == {"digits", "mnist", "official", "photos"}
    assert (tmp_path / "runs" / "mnist" / "report.html").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_parse(path, monkeypatch):
    """Flags, modes, configs and settings exist; the commands aren't run."""
    monkeypatch.chdir(ROOT)
    for arguments in commands(path.read_text()):
        words = [word for word in arguments if not re.fullmatch(r"…|\.\.\.|DIR|FILE(\.\w+)?|NAME", word)]
        assert words, path
        example = " ".join(arguments)
        if "--help" in words or re.search(r"\b(DIR|FILE|NAME|SIZE|N|BUCKET|PORT)\b|…|\||\.\.\.", example):
            continue  # a pattern, not a command
        main.parse_flags(arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_named_in_documents_exist(path):
    known = {name for model in (None, MlpModel(), Ncsnv2Model()) for name in settings_of(model)}
    for name in re.findall(r"--config\.([a-z_]+(?:\.[a-z0-9_]+)*)(?![\w.]*\*)", path.read_text()):
        assert name in known or any(other.startswith(f"{name}.") for other in known), f"{path.name}: {name}"


def settings_of(model) -> dict:
    return flatten((Config() if model is None else Config(model=model)).model_dump())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = Path(os.path.normpath(path.parent / file)) if file else path
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings], target


def test_every_mode_is_in_the_documented_table_of_modes():
    table = (ROOT / "docs" / "program.md").read_text()
    for mode in main.MODES:
        assert mode == "train" or f"--mode {mode}" in table, mode
