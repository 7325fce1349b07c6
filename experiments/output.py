"""The command line of an experiment: its figure and its numbers, as NAME.png and NAME.json of a directory."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ncsn_jax import viz


def run(name: str, description: str, experiment: Callable[[], tuple[Figure, dict[str, Any]]]) -> None:
    """Runs the experiment and writes what it returns, where the command line says."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/experiments"), help="where to write")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    figure, numbers = experiment()
    viz.save_png(directory / f"{name}.png", viz.rendered(figure))
    text = json.dumps(numbers, indent=2)
    (directory / f"{name}.json").write_text(text + "\n")
    print(f"{text}\nwritten: {directory / name}.png, {directory / name}.json")
