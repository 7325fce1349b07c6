"""The command line of an experiment: its figure and its numbers, as NAME.png and NAME.json of a directory."""

import argparse
import json
import sys
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
    picture, table = directory / f"{name}.png", directory / f"{name}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        picture.touch()  # before the minutes of work that it is to hold
        figure, numbers = experiment()
        viz.save_png(picture, viz.rendered(figure))
        table.write_text(json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        sys.exit(f"experiments.{name}: {directory} can't be written: {error}")
    print(f"{table.read_text()}written: {picture}, {table}")
