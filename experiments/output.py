"""Command line of an experiment, which writes its figure and its numbers to NAME.png and NAME.json."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ncsn_jax.runtime import viz


def run(name: str, description: str, experiment: Callable[[], tuple[Figure, dict[str, Any]]]) -> None:
    """Run the experiment and write its results to the directory of the command line."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/experiments"), help="output directory")
    directory = parser.parse_args().directory
    picture, table = directory / f"{name}.png", directory / f"{name}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        picture.touch()  # fail now, not after minutes of work
        figure, numbers = experiment()
        viz.save_png(picture, viz.rendered(figure))
        table.write_text(json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        sys.exit(f"experiments.{name}: {directory} can't be written: {error}")
    print(f"{table.read_text()}written: {picture}, {table}")
