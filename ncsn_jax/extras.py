"""The extra `app`: packages that the program needs, and the mathematics and the networks don't."""

import importlib.util

PACKAGES = (
    "absl",
    "grain",
    "jinja2",
    "matplotlib",
    "ml_collections",
    "orbax",
    "PIL",
    "platformdirs",
    "psutil",
    "pydantic",
    "scipy",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
)


def require_app(what: str) -> None:
    """Check that the packages of the extra are installed, without importing them.

    Args:
      what: the name of the part that needs them.

    Raises:
      ModuleNotFoundError: if one is missing; the message says how to install it.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{what} needs {name}, which isn't installed: pip install 'ncsn_jax[app]'", name=name
            )
