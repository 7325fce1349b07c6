"""Everything in the README runs; commands, settings and links in the documents exist."""

import functools
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from ncsn_jax.app import cli
from ncsn_jax.app.config import Config, MlpModel, NcsnppModel, Ncsnv2Model, OwnModel
from ncsn_jax.app.flags import parse_flags
from ncsn_jax.training.description import flatten
from tests.app.test_bad_input import write_official

ROOT = Path(main.__file__).parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TINY = """
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.config import Config, Data, Evaluation, OwnModel, Restoration, Sampling, Training

def get_config(image_size="8"):
    return overridable(
        Config(
            data=Data({data}),
            model=OwnModel(name="tests.tiny:TinyScore", {levels}),
            training=Training(num_steps=2, batch_size=4, eval_examples=4, preview_samples=1),
            sampling=Sampling(num_samples=4, batch_size=4, steps_per_scale=1),
            restoration=Restoration(num_samples=1),
            evaluation=Evaluation(features="pixels", metrics=("frechet", "loss"), loss_examples=4),
        )
    )
"""
"""A config file of the smallest sizes, whose network compiles within a second."""


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


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty working directory; the program puts it on `sys.path`, which is restored."""
    before = sys.path.copy()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = before


def test_readme_commands_run_in_their_order(directory, official, data_dir):
    """In the README's order, at the smallest size; digits replace MNIST, which would be downloaded.

    A config is searched in the working directory first, so the tiny ones there replace the program's own.
    """
    (directory / "configs").mkdir()
    of_digits = TINY.format(data=f"name='digits', data_dir={data_dir!r}", levels="num_scales=2")
    (directory / "configs" / "digits.py").write_text(of_digits)
    changes = {"TinyScore": "ConditionalScore", "name='digits'": "name='digits', condition='class'"}
    changes |= {"num_steps=2": "num_steps=2, unconditional=0.5"}
    conditional = functools.reduce(lambda text, change: text.replace(*change), changes.items(), of_digits)
    (directory / "configs" / "conditional.py").write_text(conditional)
    of_photos = "name='folder', image_size=int(image_size), random_flip=True, dequantization='none'"
    (directory / "configs" / "folder.py").write_text(TINY.format(data=of_photos, levels="sigmas='auto'"))
    rng = np.random.default_rng(0)
    (directory / "photos").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / "photos" / f"{i}.jpg")
    write_official(directory / "official.pth", official)
    ran = commands(README)
    assert len(ran) >= 10
    for arguments in ran:
        arguments = [
            word.replace("configs/mnist.py:conditional", "configs/conditional.py") for word in arguments
        ]
        if arguments == ["main.py"]:
            arguments.append("--config=configs/digits.py")  # the default, by its name
        if "evaluate" in arguments:
            arguments.append("--num_samples=4")
        if "inpaint" in arguments:
            arguments = [word.replace("0:8", "0:2") for word in arguments]
        assert main.main(arguments) == 0, arguments
    runs = {path.name for path in (directory / "runs").iterdir()}
    assert runs == {"digits", "mnist", "official", "photos"}
    assert (directory / "runs" / "mnist" / "report.html").exists()


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
        parse_flags(arguments, cli.MODES, "")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_named_in_documents_exist(path):
    own = OwnModel(name="package.module:name")
    known = {
        name for model in (None, MlpModel(), Ncsnv2Model(), NcsnppModel(), own) for name in settings_of(model)
    }
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
    for mode in cli.MODES:
        assert mode == "train" or f"--mode {mode}" in table, mode
