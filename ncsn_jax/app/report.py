"""Report of a run: one self-contained HTML page about the files in its directory."""

import base64
import contextlib
import io
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from cycler import cycler
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from ncsn_jax.app.build import dataset_info, network
from ncsn_jax.app.conditions import described
from ncsn_jax.app.config import Config, parse
from ncsn_jax.app.imports import import_paths
from ncsn_jax.app.trained import load_run
from ncsn_jax.evaluation import results
from ncsn_jax.evaluation.results import Subject
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole
from ncsn_jax.runtime.paths import is_url
from ncsn_jax.training.checkpoints import steps_in
from ncsn_jax.training.description import changes, flatten
from ncsn_jax.training.state import fitting_params
from ncsn_jax.training.workdir import checkpoint_dir

TEMPLATE = "report.html.jinja"
MAX_PREVIEWS, MAX_NEIGHBOURS, MAX_LEVELS = 12, 4, 6
"""Largest numbers of previews, of pictures of neighbours, and of curves over the noise level. If there are
more, the page shows the first, the last and some in between."""

RESTORATIONS = {
    "inpaint": "Inpainting",
    "deblur": "Deblurring",
    "restore": "Restoration",
    "superres": "Super-resolution",
    "colorize": "Colorization",
    "denoise": "Denoising",
    "interpolate": "Interpolation",
}

INK = "#123456"
"""Placeholder in matplotlib's SVG for the colour of the page's text."""
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=["#3f83d9", "#df7a35", "#3da06a", "#b35fc4", "#c8a02b", "#8a8f98"]),
    "legend.frameon": False,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
}

Item = TypeVar("Item")
Rows = Float[np.ndarray, "n 2"]


class Picture(NamedTuple):
    """Embedded image; `alt` is its text alternative."""

    uri: str
    width: int
    height: int
    alt: str


class Chart(NamedTuple):
    """Embedded SVG drawing."""

    title: str
    svg: Markup


class Row(NamedTuple):
    """Row of the table: one result of every subject and of real test data."""

    name: str
    better: str | None
    cells: list[results.Result | None]
    best: int | None
    real: float | None


def write_report(workdir: Path) -> Path:
    """Write `report.html`: the config, training, samples, metrics and cost of a run, in one page.

    The page embeds its pictures, loads nothing and runs no script. The same files give the same page, byte
    for byte. For missing files, the page omits the section or shows the command that makes them.

    Args:
      workdir: the run's directory.

    Returns:
      The page's path.

    Raises:
      UserError: if there is no run, or a file in `eval/` isn't an evaluation of this program.
    """
    config, metrics = load_run(workdir), read_metrics(workdir / "metrics.jsonl")
    subjects = results.read_all(workdir / "eval")
    defaults = parse({"model": {"name": config.model.name}})  # of the same kind of network
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = _figures
    page = environment.get_template(TEMPLATE).render(
        name=workdir.resolve().name,
        command=f"python main.py --workdir {shlex.quote(str(workdir))}",
        facts=_facts(workdir, config, metrics),
        changed=changes(flatten(defaults.model_dump()), flatten(config.model_dump())),
        config=config.model_dump_json(indent=2),
        training=_training_charts(metrics),
        **_samples(workdir / "samples"),
        subjects=[subject.title for subject in subjects],
        rows=_table(subjects),
        problems=sorted({problem for subject in subjects for problem in subject.problems.items()}),
        over_steps=_result_charts(subjects),
        details=_level_charts(subjects) + _class_charts(subjects),
        **_neighbours(workdir / "eval"),
        spectra=_pictures(workdir / "eval", "_spectrum", "power spectra of {} and of data"),
        restorations=_restorations(workdir),
        cost=_cost(workdir, config, metrics),
    )
    path = workdir / "report.html"
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def read_metrics(path: Path) -> dict[str, Rows]:
    """Return the metrics of a run by name, each as rows of (step, value).

    Incomplete lines and values that aren't finite are skipped. A missing file has no metrics.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    text = path.read_text(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = values.pop("step", None) if isinstance(values, dict) else None
        if not _is_number(step):
            continue
        for name, value in values.items():
            if _is_number(value):
                found.setdefault(name, []).append((step, value))
    return {name: np.array(rows, float) for name, rows in found.items()}


def _is_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _facts(workdir: Path, config: Config, metrics: Mapping[str, Rows]) -> dict[str, str]:
    model, training = config.model, config.training
    facts = {"dataset": config.data.name, "network": model.name}
    if config.data.data_dir and config.data.name == "folder":
        facts["dataset"] += f" {config.data.data_dir}"
    if config.data.conditions:
        facts["condition"] = described(config.data.conditions)
    if model.sigmas != "auto":
        levels = model.noise_levels
        facts["noise levels"] = f"{len(levels)}, σ from {levels[0]:g} to {levels[-1]:g}"
    facts["step"] = f"{_last_step(workdir, config, metrics):,} of {training.num_steps:,}"
    files = [workdir / "config.json", workdir / "metrics.jsonl"]
    files += [*workdir.glob("samples/*.*"), *workdir.glob("eval/*.*")]
    newest = max(file.stat().st_mtime for file in files if file.is_file())
    facts["newest data"] = f"{datetime.fromtimestamp(newest, UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _last_step(workdir: Path, config: Config, metrics: Mapping[str, Rows]) -> int:
    logged = [int(rows[:, 0].max()) for rows in metrics.values()]
    return max([0, *logged, *_checkpoints(workdir, config)])


def _checkpoints(workdir: Path, config: Config) -> list[int]:
    """Return the steps of the checkpoints; an empty list if their bucket can't be read."""
    try:
        return steps_in(checkpoint_dir(workdir, config.training.checkpoint_dir))
    except (UserError, OSError):
        return []


def _cost(workdir: Path, config: Config, metrics: Mapping[str, Rows]) -> dict[str, str]:
    step, batch_size = _last_step(workdir, config, metrics), config.training.batch_size
    cost = {}
    if not list(import_paths(config)):  # a report imports nothing
        with contextlib.suppress(UserError):  # a dataset that this version doesn't know
            x = jax.ShapeDtypeStruct(dataset_info(config).shape, jnp.float32)
            params, _ = fitting_params(network(config), x)
            cost["parameters"] = f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}"
    cost |= {"training steps": f"{step:,}", "examples seen": f"{step * batch_size:,}, {batch_size} a step"}
    compiled, speed = metrics.get("first_step_seconds"), metrics.get("examples_per_second")
    if compiled is not None:
        times = "" if len(compiled) == 1 else f", in {len(compiled)} starts"
        cost["first step"] = f"{compiled[:, 1].sum():.3g} s{times}"
    if speed is not None and (speed[:, 1] > 0).all():
        cost["examples a second (median)"] = f"{statistics.median(speed[:, 1].tolist()):.4g}"
        examples = np.diff(speed[:, 0], prepend=0) * batch_size
        seconds = (examples / speed[:, 1]).sum() + (0 if compiled is None else compiled[:, 1].sum())
        cost["training took about"] = _duration(seconds)
    checkpoints = _checkpoints(workdir, config)
    place = str(checkpoint_dir(workdir, config.training.checkpoint_dir))
    if checkpoints and is_url(place):
        cost["checkpoints"] = f"{len(checkpoints)}, in {place}"
    elif checkpoints:
        files = [file for number in checkpoints for file in Path(place, str(number)).rglob("*")]
        size = _size(sum(file.stat().st_size for file in files if file.is_file()))
        cost["checkpoints on disk"] = f"{len(checkpoints)}, {size} together"
    return cost


def _figures(value: float, count: int) -> str:
    """Format a number to `count` significant figures, without an exponent unless it is huge or tiny.

    >>> _figures(213.4, 2), _figures(0.05367, 2), _figures(12.8214, 4)
    ('210', '0.054', '12.82')
    """
    rounded = float(f"{value:.{count}g}")
    return f"{rounded:,.0f}" if 10**count <= abs(rounded) < 1e7 else f"{rounded:.{count}g}"


def _duration(seconds: float) -> str:
    unit, name = next(((u, n) for u, n in ((3600, "hours"), (60, "minutes")) if seconds >= u), (1, "seconds"))
    return f"{seconds / unit:.3g} {name}"


def _size(count: int) -> str:
    power = min(max(len(str(count)) - 1, 0) // 3, 4)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def _samples(directory: Path) -> dict[str, Any]:
    previews = sorted(path for path in directory.glob("step_*.png") if path.stem[5:].isdecimal())
    shown = [
        (f"step {int(path.stem[5:]):,}", picture)
        for path in _spread(previews, MAX_PREVIEWS)
        if (picture := _picture(path, f"samples at step {int(path.stem[5:])}"))
    ]
    return {
        "previews": shown,
        "num_previews": len(previews),
        "grid": _picture(directory / "grid.png", "a grid of samples"),
        "sets": [
            (place.name, picture)
            for place in _sets(directory)
            if (picture := _picture(place / "grid.png", f"a grid of the samples {place.name}"))
        ],
        "animation": _picture(directory / "annealing.gif", "an animation from noise to samples"),
    }


def _neighbours(directory: Path) -> dict[str, Any]:
    shown = _pictures(directory, "_neighbours", "samples of {} and their nearest training images")
    return {"neighbours": shown, "num_neighbours": len(list(directory.glob("*_neighbours.png")))}


def _pictures(directory: Path, suffix: str, what: str) -> list[tuple[str, Picture]]:
    """Return some of the subjects' pictures whose names end in a suffix, with the names of the subjects."""
    paths = sorted(directory.glob(f"*{suffix}.png"))
    named = [(path, _step_name(path.stem.removesuffix(suffix))) for path in paths]
    return [
        (name, picture)
        for path, name in _spread(named, MAX_NEIGHBOURS)
        if (picture := _picture(path, what.format(name)))
    ]


def _restorations(workdir: Path) -> list[tuple[str, str, Picture]]:
    found = []
    for mode, directory in ((m, d) for m in RESTORATIONS for d in (workdir / m, *_sets(workdir / m))):
        title = RESTORATIONS[mode] + ("" if directory.name == mode else f": {directory.name}")
        picture = _picture(directory / "grid.png", f"images of {title.lower()}")
        if picture is None:
            continue
        caption = "Each row passes from one image to another."
        if mode != "interpolate":
            columns = ["the original"] if (directory / "originals.npy").exists() else []
            columns += ["its observation" if columns else "the observation"]
            columns[-1] += ", if it is an image" if mode == "restore" else ""
            columns += ["its expectation E[x₀ | y]"] if (directory / "means.npy").exists() else []
            caption = f"One image per row; columns: {', '.join(columns)}, then restorations."
        found.append((title, caption, picture))
    return found


def _sets(directory: Path) -> list[Path]:
    """Return the directories of samples that have a name (`--out`)."""
    return sorted(path.parent for path in directory.glob("*/grid.png"))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items: the first, the last, and some in between."""
    numbers = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[number] for number in numbers]


def _picture(path: Path, alt: str) -> Picture | None:
    """Return the image in a file; None if it doesn't exist or its size can't be read."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
        content = base64.b64encode(path.read_bytes()).decode()
    except Exception:  # damaged files raise many types
        return None
    return Picture(f"data:image/{path.suffix[1:]};base64,{content}", width, height, alt)


def _step_name(name: str) -> str:
    step, _, length = name.removeprefix("step_").partition("_ema_")
    if not step.isdecimal():
        return name
    return f"step {int(step):,}" + (f", EMA {length}" if length else "")


def _table(subjects: Sequence[Subject]) -> list[Row]:
    rows = []
    for name in results.names(subjects):
        cells = [subject.results.get(name) for subject in subjects]
        found = [cell for cell in cells if cell is not None]
        best = results.best(subjects, name)
        real = next((cell.real for cell in found if cell.real is not None), None)
        number = None if best is None else next(i for i, s in enumerate(subjects) if s is best)
        rows.append(Row(name, found[0].better, cells, number, real))
    return rows


def _training_charts(metrics: Mapping[str, Rows]) -> list[Chart]:
    wanted = {
        "Loss": {"training": "loss", "held out": "test_loss"},
        "Gradient norm": {"": "gradient_norm"},
        "Examples a second": {"": "examples_per_second"},
    }
    charts: list[Chart] = []
    for title, names in wanted.items():
        series = {label: metrics[name] for label, name in names.items() if name in metrics}
        if not series:
            continue
        with _drawn(charts, title) as axes:
            for label, rows in series.items():
                axes.plot(rows[:, 0], rows[:, 1], marker="." if len(rows) < 30 else "", label=label)
            _scale(axes, np.concatenate([rows[:, 1] for rows in series.values()]))
            _steps(axes)
            if any(series):
                axes.legend()
    return charts


def _result_charts(subjects: Sequence[Subject]) -> list[Chart]:
    charts: list[Chart] = []
    for name, found in results.over_steps(subjects).items():
        with _drawn(charts, name) as axes:
            results.draw_over_steps(axes, found)
            _steps(axes)
    return charts


def _level_charts(subjects: Sequence[Subject]) -> list[Chart]:
    charts: list[Chart] = []
    if shown := _spread(results.losses_by_level(subjects), MAX_LEVELS):
        with _drawn(charts, "Loss of test examples by noise level") as axes:
            results.draw_losses(axes, shown)
            _plain_numbers(axes.xaxis)
    return charts


def _class_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Plot class shares of the newest checkpoint's samples and of given images, with the training data's."""
    found = [(s, s.metrics["classes"].details) for s in subjects if "classes" in s.metrics]
    found = [(s, details) for s, details in found if "samples" in details]
    newest = [(s, details) for s, details in found if s.step is not None and s.ema_length is None][-1:]
    charts: list[Chart] = []
    for subject, details in newest + [(s, details) for s, details in found if s.step is None]:
        with _drawn(charts, f"Classes: {subject.title}") as axes:
            edges = np.arange(len(details["samples"]) + 1) - 0.5
            axes.stairs(details["samples"], edges, fill=True, alpha=0.6, label="samples")
            if "training data" in details:
                axes.stairs(details["training data"], edges, color="C1", label="training data", linewidth=1.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
            axes.set(xlabel="class", ylabel="share", xlim=(edges[0], edges[-1]))
            axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
            axes.legend(ncols=2, loc="upper right")
    return charts


def _steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _scale(axes: Axes, values: Float[np.ndarray, " n"]) -> None:
    """Set a logarithmic scale if the values are positive and far apart."""
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis; matplotlib's labels are formulas, in fonts that browsers lack."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def _drawn(charts: list[Chart], title: str) -> Iterator[Axes]:
    """Yield axes, and append the drawing to the charts, in the page's colours."""
    # The salt makes a chart's ids unique in the page, and reproducible.
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": title}
    with matplotlib.rc_context(style):
        figure = Figure((4.0, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        yield axes
        file = io.StringIO()
        metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    start = Markup('<svg role="img" aria-label="{}"').format(title)
    charts.append(Chart(title, start + Markup(svg.removeprefix("<svg"))))
