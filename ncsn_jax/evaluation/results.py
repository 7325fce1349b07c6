"""What was measured: a JSON file each subject, a table, and curves over training steps."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, ValidationError

from ncsn_jax.errors import UserError
from ncsn_jax.files import write_whole


class Result(BaseModel):
    """One number.

    Attributes:
      value: what was measured.
      standard_error: of the value; None where it isn't known.
      real: the same of as many real test images: what no model need do better than.
      better: which values are better, if any are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float | None = None
    real: float | None = None
    better: Literal["lower", "higher"] | None = None


class Measured(BaseModel):
    """What one metric has measured.

    Attributes:
      of: identifies all that it was measured of; another one is measured anew.
      results: by name, of which the number of examples is a part.
      details: histograms, curves, and what else isn't one number.
      problems: what can't be measured, by name, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    results: dict[str, Result]
    details: dict[str, Any] = {}
    problems: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a measurement has found: the `results`, `details` and `problems` of `Measured`."""

    results: dict[str, Result]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)


class Subject(BaseModel):
    """What is measured of the samples of one checkpoint, or of given images, by metric.

    Attributes:
      name: of its file.
      step: of the checkpoint; None of images.
      images: where given images lie.
      metrics: by name.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    step: int | None = None
    images: str | None = None
    metrics: dict[str, Measured] = {}

    @property
    def results(self) -> dict[str, Result]:
        """All results, by name."""
        return {name: r for measured in self.metrics.values() for name, r in measured.results.items()}

    @property
    def problems(self) -> dict[str, str]:
        """All that can't be measured, by name, and why."""
        return {name: why for measured in self.metrics.values() for name, why in measured.problems.items()}

    @property
    def title(self) -> str:
        """What a table calls it: its step, or the last two parts of where its images lie."""
        if self.step is not None:
            return f"step {self.step:,}"
        return self.name if self.images is None else "/".join(Path(self.images).parts[-2:])


def read(path: Path) -> Subject | None:
    """The subject in a file; None if there is none.

    Raises:
      UserError: if the file is something else.
    """
    if not path.exists():
        return None
    try:
        return Subject.model_validate_json(path.read_text())
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is not this program's evaluation: move it away") from error


def read_all(directory: Path) -> list[Subject]:
    """The subjects in a directory's files: checkpoints by their steps, then others by name."""
    subjects = [subject for path in sorted(directory.glob("*.json")) if (subject := read(path))]
    return sorted(subjects, key=lambda s: (s.step is None, s.step or 0, s.name))


def write(path: Path, subject: Subject) -> None:
    """Writes a subject to its file."""
    text = json.dumps(subject.model_dump(mode="json"), indent=1)
    write_whole(path, lambda file: file.write(text.encode() + b"\n"))


def best(subjects: Sequence[Subject], name: str) -> Subject | None:
    """The checkpoint with the best value of a result; None if there are fewer than two, or none is better."""
    found = [s for s in subjects if s.step is not None and name in s.results]
    sign = {"lower": 1.0, "higher": -1.0, None: None}[found[0].results[name].better if found else None]
    if sign is None or len(found) < 2:
        return None
    return min(found, key=lambda s: sign * s.results[name].value)


def table(subjects: Sequence[Subject], *, columns: int = 5) -> str:
    """The results as text: a row each, a column each subject; * marks the best checkpoint.

    What can't be measured follows, a line each.

    Args:
      subjects: what was measured.
      columns: how many subjects stand beside each other.
    """
    names = list(dict.fromkeys(name for subject in subjects for name in subject.results))
    problems = {f"{name}: not measured ({why})" for s in subjects for name, why in s.problems.items()}
    if not names:
        return "\n".join(["nothing was measured", *sorted(problems)])
    best_of = {name: best(subjects, name) for name in names}
    blocks = []
    for first in range(0, len(subjects), columns):
        shown = subjects[first : first + columns]
        rows = [["", *(s.title for s in shown), "real test data"]]
        for name in names:
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
    """Every result over training steps, that of real test data dashed; None of fewer than two steps."""
    trained = [subject for subject in subjects if subject.step is not None]
    names = list(dict.fromkeys(name for subject in trained for name in subject.results))
    if len(trained) < 2 or not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure((4 * columns, 2.6 * rows), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        found = [(s.step, s.results[name]) for s in trained if name in s.results]
        steps, results = zip(*found, strict=True)
        axes.errorbar(steps, [r.value for r in results], [r.standard_error or 0 for r in results], marker=".")
        reals = [r.real for r in results if r.real is not None]
        if reals:
            axes.axhline(reals[0], color="gray", linestyle="--", linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    return figure


def count_name(count: int) -> str:
    """A number of samples as papers name it: 10k, 1.5k, 297.

    >>> count_name(50_000), count_name(1500), count_name(297)
    ('50k', '1.5k', '297')
    """
    return f"{count / 1000:g}k" if count % 100 == 0 and count >= 1000 else str(count)


def file_name(name: str) -> str:
    """A name as a file may have it: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "_", name)
