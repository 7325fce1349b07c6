"""Results of an evaluation: a JSON file per subject, a table, and curves over training steps."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, ValidationError

from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole


class Result(BaseModel):
    """One measured number.

    Attributes:
      value: the measured value.
      standard_error: the standard error of the value; None if unknown.
      real: the same measure of as many real test images; no model needs to be better.
      better: whether lower or higher values are better; None if neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float | None = None
    real: float | None = None
    better: Literal["lower", "higher"] | None = None


class Measured(BaseModel):
    """Results of one metric.

    Attributes:
      of: the fingerprint of the metric's inputs; if it changes, the metric is measured again.
      results: the results by name; a name includes the number of examples.
      details: histograms, curves, and other arrays.
      problems: the reasons for missing results, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    results: dict[str, Result]
    details: dict[str, Any] = {}
    problems: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Found:
    """Outcome of a measurement: the `results`, `details` and `problems` of `Measured`."""

    results: dict[str, Result]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)


class Subject(BaseModel):
    """Results of one checkpoint, or of given images, by metric.

    Attributes:
      name: the name of its file.
      step: the step of the checkpoint; None for images.
      ema_length: the length of the average by a power function; None for the run's own average.
      images: the path of given images.
      metrics: the metrics by name.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    step: int | None = None
    ema_length: float | None = None
    images: str | None = None
    metrics: dict[str, Measured] = {}

    @property
    def results(self) -> dict[str, Result]:
        """All results, by name."""
        return {name: r for measured in self.metrics.values() for name, r in measured.results.items()}

    @property
    def problems(self) -> dict[str, str]:
        """Reasons for missing results, by name."""
        return {name: why for measured in self.metrics.values() for name, why in measured.problems.items()}

    @property
    def title(self) -> str:
        """Name in a table: the step and the average's length, or the last two parts of the images' path."""
        if self.step is not None:
            return f"step {self.step:,}" + ("" if self.ema_length is None else f", EMA {self.ema_length:g}")
        return self.name if self.images is None else "/".join(Path(self.images).parts[-2:])


def read(path: Path) -> Subject | None:
    """Return the subject in a file; None if the file doesn't exist.

    Raises:
      UserError: if the file isn't an evaluation of this program.
    """
    if not path.exists():
        return None
    try:
        return Subject.model_validate_json(path.read_text("utf-8"))
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is not an evaluation of this program; move it away") from error


def read_all(directory: Path) -> list[Subject]:
    """Return the subjects in a directory's files: checkpoints by step, then given images by name."""
    subjects = [subject for path in sorted(directory.glob("*.json")) if (subject := read(path))]
    return sorted(subjects, key=lambda s: (s.step is None, s.step or 0, s.name))


def write(path: Path, subject: Subject) -> None:
    """Write a subject to its file."""
    text = json.dumps(subject.model_dump(mode="json"), indent=1)
    write_whole(path, lambda file: file.write(text.encode() + b"\n"))


def names(subjects: Sequence[Subject]) -> list[str]:
    """Return the names of all results."""
    return list(dict.fromkeys(name for subject in subjects for name in subject.results))


def best(subjects: Sequence[Subject], name: str) -> Subject | None:
    """Return the checkpoint with a result's best value; None if fewer than two have it, or none is best."""
    found = [s for s in subjects if s.step is not None and name in s.results]
    sign = {"lower": 1.0, "higher": -1.0, None: None}[found[0].results[name].better if found else None]
    if sign is None or len(found) < 2:
        return None
    return min(found, key=lambda s: sign * s.results[name].value)


def table(subjects: Sequence[Subject], *, columns: int = 5) -> str:
    """Return the results as text: a row per result, a column per subject; * marks the best checkpoint.

    Missing results follow, one line each.

    Args:
      subjects: the subjects.
      columns: the number of subjects in a row.
    """
    found = names(subjects)
    problems = {f"{name}: not measured ({why})" for s in subjects for name, why in s.problems.items()}
    if not found:
        return "\n".join(["nothing was measured", *sorted(problems)])
    best_of = {name: best(subjects, name) for name in found}
    blocks = []
    for first in range(0, len(subjects), columns):
        shown = subjects[first : first + columns]
        rows = [["", *(s.title for s in shown), "real test data"]]
        for name in found:
            cells = [_cell(s.results.get(name), mark=s is best_of[name]) for s in shown]
            real = next((r.real for s in subjects if (r := s.results.get(name)) and r.real is not None), None)
            rows.append([name, *cells, "" if real is None else f"{real:.4g}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            label, *cells = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            blocks.append("  ".join([label, *cells]).rstrip())
    return "\n".join([*blocks, *sorted(problems)])


def _cell(result: Result | None, *, mark: bool) -> str:
    if result is None:
        return ""
    error = "" if result.standard_error is None else f" ±{result.standard_error:.2g}"
    return f"{'*' if mark else ''}{result.value:.4g}{error}"


def curves(subjects: Sequence[Subject]) -> Figure | None:
    """Plot every result that has two steps or more over training steps; None if there is none."""
    found = over_steps(subjects)
    if not found:
        return None
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure((4 * columns, 2.6 * rows), dpi=100, layout="constrained")
    for number, name in enumerate(found, start=1):
        axes = figure.add_subplot(rows, columns, number)
        draw_over_steps(axes, found[name])
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
    return figure


def over_steps(subjects: Sequence[Subject]) -> dict[str, list[tuple[int, Result]]]:
    """Return the steps and values of every result that checkpoints of two steps or more have, by name.

    Averages of other lengths are left out.
    """
    trained = [(s.step, s.results) for s in subjects if s.step is not None and s.ema_length is None]
    found = {name: [(step, r[name]) for step, r in trained if name in r] for name in names(subjects)}
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def draw_over_steps(axes: Axes, found: Sequence[tuple[int, Result]]) -> None:
    """Draw a result over training steps, with real test data dashed."""
    steps, results = zip(*found, strict=True)
    errors = [r.standard_error or 0 for r in results]
    axes.errorbar(steps, [r.value for r in results], errors, marker=".", capsize=2)
    reals = [r.real for r in results if r.real is not None]
    if reals:
        axes.axhline(reals[0], color="gray", linestyle="--")


def losses_by_level(subjects: Sequence[Subject]) -> list[tuple[str, dict[str, Any]]]:
    """Return the titles of the checkpoints whose loss by noise level was measured, and its details."""
    trained = [s for s in subjects if s.step is not None and "loss" in s.metrics]
    found = [(s.title, s.metrics["loss"].details) for s in trained]
    return [(title, details) for title, details in found if {"sigma", "loss"} <= details.keys()]


def draw_losses(axes: Axes, found: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Draw `losses_by_level`, one curve per checkpoint."""
    for title, details in found:
        errors = details.get("standard_error")
        axes.errorbar(details["sigma"], details["loss"], errors, marker=".", label=title)
    axes.set(xscale="log", xlabel="noise level σ")
    axes.legend()


def count_name(count: int) -> str:
    """Format a number of samples as papers do: 10k, 1.5k, 297.

    >>> count_name(50_000), count_name(1500), count_name(297)
    ('50k', '1.5k', '297')
    """
    return f"{count / 1000:g}k" if count % 100 == 0 and count >= 1000 else str(count)


def file_name(name: str) -> str:
    """Return a valid file name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "_", name)
