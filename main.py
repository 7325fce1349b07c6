"""Train a score network, sample from a trained one, and restore images with it: `python main.py --help`."""

# ruff: noqa: E402
import gc

gc.disable()  # imports create only lasting objects

from ncsn_jax.app.cli import main
from ncsn_jax.app.process import run

gc.enable()

__all__ = ["main"]

if __name__ == "__main__":
    run()
