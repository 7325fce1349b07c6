"""The report of a run: its contents, and that the page is self-contained."""

import json
import os
from html.parser import HTMLParser

import numpy as np
import pytest

from ncsn_jax.app import report
from ncsn_jax.app.config import Config, Ncsnv2Model
from ncsn_jax.app.report import write_report
from ncsn_jax.data import Data
from ncsn_jax.evaluation import results
from ncsn_jax.evaluation.results import Measured, Result, Subject
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.paths import absolute

HOSTILE = "<script>alert('x')</script>\"&<img src=http://example.org/x>"
VOID = {"meta", "img", "br", "hr", "link", "input", "base"}


class Page(HTMLParser):
    """Parses a page; fails at unclosed or mismatched tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], [], [], [], {}
        self.section = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.section = attributes["id"] if tag == "section" else self.section
        self.links += [
            value or "" for name, value in attrs if name.split(":")[-1] in ("src", "href", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("dt", "dd", "th", "td"):
            self.handle_data(" ")

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 4, 1), 128, np.uint8)
    if path.suffix == ".gif":
        viz.save_gif(path, [pixels, pixels // 2])
    else:
        viz.save_png(path, pixels)


def subject(step, value, *, name=None):
    measured = {
        "frechet": Measured(
            of="x",
            results={
                "FD-1k (classifier)": Result(value=value, standard_error=0.25, real=0.0625, better="lower")
            },
        ),
        "classes": Measured(
            of="x",
            results={"class shares": Result(value=0.125)},
            details={"samples": [0.25, 0.75], "training data": [0.5, 0.5]},
        ),
        "loss": Measured(
            of="x",
            results={"loss, 8 test examples": Result(value=2 * value, better="lower")},
            details={"sigma": [1.0, 0.1], "loss": [2.0, 3.0], "standard_error": [0.1, 0.2]},
        ),
    }
    return Subject(name=name or f"step_{step:08d}", step=step, metrics=measured)


@pytest.fixture
def empty(tmp_path, tiny_config):
    """A run that holds only its config."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(tiny_config.model_dump_json())
    return workdir


@pytest.fixture
def full(empty):
    """A complete run whose log ends in a torn line."""
    lines = [{"step": 1, "first_step_seconds": 6.0}]
    lines += [
        {"step": step, "loss": 2.0 / step, "gradient_norm": 1.0, "examples_per_second": 80.0 / 60}
        for step in (10, 20, 30, 40)
    ]
    lines += [{"step": 40, "test_loss": 0.5}]
    text = "\n".join(map(json.dumps, lines))
    (empty / "metrics.jsonl").write_text(text + '\n{"step": 50, "lo')
    for name in (
        *(f"samples/step_{step:08d}.png" for step in (20, 40)),
        "samples/grid.png",
        "samples/annealing.gif",
        "eval/step_00000040_neighbours.png",
        *(f"{mode}/grid.png" for mode in report.RESTORATIONS),
    ):
        picture(empty / name)
    (empty / "denoise" / "means.npy").touch()
    (empty / "inpaint" / "originals.npy").touch()
    for found in (subject(20, 2.5), subject(40, 1.25), subject(None, 3.0, name="images_theirs")):
        results.write(empty / "eval" / f"{found.name}.json", found)
    for step in (20, 40):
        checkpoint = empty / "checkpoints" / str(step) / "default"
        checkpoint.mkdir(parents=True)
        (checkpoint / "array").write_bytes(bytes(1500))
    return empty


def page_of(workdir):
    path = write_report(workdir)
    assert path == workdir / "report.html"
    return Page(path.read_text())


def words(page, section):
    return " ".join(page.text[section].split())


def test_report_shows_every_section_of_a_complete_run(full):
    page = page_of(full)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["training", "samples", "metrics", "neighbours", "restorations", "cost", "config"]
    header = words(page, None)
    for words_of_header in ("dataset two_moons", "network mlp", "step 40 of 40", "3, σ from 1 to 0.01"):
        assert words_of_header in header
    assert all(title in words(page, "training") for title in ("Loss", "Gradient norm", "Examples a second"))
    assert "step 20" in words(page, "samples")
    assert "step 40" in words(page, "samples")
    metrics = words(page, "metrics")
    row = "FD-1k (classifier) ↓ 0.0625 2.5 ± 0.25 ★ 1.25 ± 0.25 3 ± 0.25"
    assert row in metrics.replace("\xa0", " ")
    assert "Classes: step 40" in metrics
    assert "Classes: images_theirs" in metrics
    assert "Loss of test examples by noise level" in metrics
    assert "step 40: sample | nearest in pixels | nearest in features" in words(page, "neighbours")
    restored = words(page, "restorations")
    assert all(title in restored for title in report.RESTORATIONS.values())
    assert "the original, its observation, then restorations" in restored
    assert "the observation, its expectation E[x₀ | y], then restorations" in restored
    assert len(page.images()) == 2 + 2 + 1 + 7


def test_report_counts_steps_examples_time_and_parameters(full):
    cost = words(page_of(full), "cost")
    # The layers are (x, log σ) → 8 → 8 → 2, with biases; 40 steps of 8 examples, 4/3 a second, after 6 s.
    assert "training steps 40" in cost
    assert "examples seen 320, 8 a step" in cost
    assert "first step 6 s" in cost
    assert "examples a second (median) 1.333" in cost
    assert "training took about 4.1 minutes" in cost
    assert "checkpoints on disk 2, 3 kB together" in cost
    assert f"parameters {(3 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 2} " in cost


def test_report_lists_settings_that_differ_from_the_defaults_first(full):
    text = words(page_of(full), "config")
    before, after = text.split("All settings")
    assert "training.num_steps 40 200000" in before
    assert "model.num_features 8 128" in before
    assert "model.num_filters" not in before  # another network's
    assert "data.dequantization" not in before
    assert '"dequantization": "uniform"' in after


def test_report_page_needs_no_other_file_and_no_script(full):
    page = page_of(full)
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert all(image["alt"] and int(image["width"]) == 4 for image in page.images())
    assert ("html", {"lang": "en"}) in page.tags
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (full / "report.html").read_text()
    assert "url(http" not in text
    assert "@import" not in text


def test_report_of_the_same_run_has_the_same_bytes(full):
    first = write_report(full).read_bytes()
    assert write_report(full).read_bytes() == first
    assert not list(full.glob("*.partial"))


def test_writing_a_report_changes_no_other_file(full):
    before = {path: path.stat().st_mtime_ns for path in full.rglob("*") if path.is_file()}
    write_report(full)
    after = {path: path.stat().st_mtime_ns for path in full.rglob("*") if path.is_file()}
    assert after == before | {full / "report.html": after[full / "report.html"]}


def test_report_escapes_hostile_names(tmp_path):
    workdir = tmp_path / "<script>alert('x')<" / 'a "run" & <b onclick=x>'
    (workdir / "eval").mkdir(parents=True)
    config = Config(data=Data(name="folder", data_dir=HOSTILE, image_size=8), model=Ncsnv2Model())
    (workdir / "config.json").write_text(config.model_dump_json())
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, HOSTILE: 1.0}))
    for step in (1, 2):
        hostile = subject(step, 1.0)
        hostile.metrics["x"] = Measured(of="x", results={f"{HOSTILE} $\\frac$": Result(value=1.0)})
        results.write(workdir / "eval" / f"{step}.json", hostile)
    results.write(workdir / "eval" / "x.json", subject(None, 1.0, name=f"{HOSTILE} $\\frac$"))
    picture(workdir / "eval" / "<img src=x>_neighbours.png")
    page = page_of(workdir)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:") for image in page.images())
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert 'a "run" & <b onclick=x>' in words(page, None)
    assert f"dataset folder {absolute(HOSTILE)}" in words(page, None)
    assert HOSTILE in words(page, "metrics")


def test_report_names_missing_parts_with_the_command_that_makes_them(empty):
    page = page_of(empty)
    command = f"python main.py --workdir {empty}"
    assert f"Continue the training with {command}" in words(page, "training")
    assert f"{command} --mode sample" in words(page, "samples")
    assert f"{command} --mode evaluate" in words(page, "metrics")
    assert not {"neighbours", "restorations"} & set(page.ids)
    assert page.images() == []
    assert "training steps 0" in words(page, "cost")
    assert "checkpoints" not in words(page, "cost")


def test_report_refuses_a_directory_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 20, "loss": ', b'{"step": 20, "loss": "x"}\n', b'{"loss": 3.0}\n', b"[1]\n", b"\xff\xfe\n"],
)
def test_reading_metrics_skips_torn_lines(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10, "loss": 2.0, "gradient_norm": NaN}\n' + torn)
    found = report.read_metrics(path)
    assert found.keys() == {"loss"}
    np.testing.assert_array_equal(found["loss"], [[10, 2.0]])


def test_reading_metrics_without_a_log_returns_nothing(tmp_path):
    assert report.read_metrics(tmp_path / "metrics.jsonl") == {}


def test_report_leaves_out_truncated_pictures(full):
    (full / "samples" / "grid.png").write_bytes(b"\x89PNG\r\n")
    (full / "samples" / "step_00000020.png").write_bytes(b"")
    assert len(page_of(full).images()) == 12 - 2


def test_report_shows_only_some_of_many_previews(full):
    for step in range(1, 31):
        picture(full / "samples" / f"step_{step:08d}.png")
    text = words(page_of(full), "samples")
    assert f"{report.MAX_PREVIEWS} of 31 previews" in text
    assert "step 1 " in text
    assert "step 40" in text


def test_report_shows_the_modification_time_of_the_newest_data(full):
    for path in full.rglob("*.*"):
        os.utime(path, (0, 0))
    os.utime(full / "metrics.jsonl", (86_400, 86_400))
    assert "1970-01-02 00:00 UTC" in words(page_of(full), None)


@pytest.mark.parametrize("elsewhere", ["ck", "gs://bucket/run"])
def test_report_counts_checkpoints_in_the_configured_checkpoint_dir(empty, tiny_config, elsewhere, tmp_path):
    """A bucket that can't be read without an extra gives a page without them."""
    place = elsewhere if "://" in elsewhere else str(tmp_path / elsewhere)
    (tmp_path / "ck" / "30").mkdir(parents=True)
    (tmp_path / "ck" / "30" / "array").write_bytes(b"x" * 2000)
    (empty / "checkpoints" / "40").mkdir(parents=True)  # such as an earlier run's
    moved = tiny_config.training.model_copy(update={"checkpoint_dir": place})
    config = tiny_config.model_copy(update={"training": moved})
    (empty / "config.json").write_text(config.model_dump_json())
    text = Page(write_report(empty).read_text()).text
    assert ("1, 2 kB together" in text["cost"]) == (elsewhere == "ck")
    assert "40" not in text["cost"].partition("training steps")[2].partition("examples")[0]
