"""Imports point downwards: the mathematics knows nothing of files, settings or processes."""

import ast
import re
from pathlib import Path

import pytest

import ncsn_jax

PACKAGE = Path(ncsn_jax.__file__).parent
FLOORS = (
    (
        "typing",
        "extras",
        "dtypes",
        "noise",
        "transforms",
        "densities",
        "losses",
        "samplers",
        "likelihood",
        "operators",
        "pull",
        "guidance",
        "posterior",
        "interpolation",
    ),
    ("models",),
    ("interop",),
    ("runtime",),
    ("data",),
    ("training",),
    ("evaluation",),
    ("app",),
    ("__main__",),
)
"""Modules and packages below `ncsn_jax`, from the ground up; a floor may import itself and lower ones."""
FORWARDS = {"ncsn_jax.training.__init__": {"ncsn_jax.app.train", "ncsn_jax.app.trained"}}
"""The one exception: functions of `ncsn_jax.training` that read a config, and import it when called."""
PUBLIC = """
    MLP NCSN GaussianMixture NCSNpp NCSNv2 Observation Preconditioned annealed_langevin_dynamics
    as_score_fn class_log_likelihood classifier_free_guidance consistent_annealed_sampling
    denoising_score_matching explicit_score_matching geometric_sigmas guided_score heun
    implicit_score_matching inpaint interpolate interpolate_latents karras_sigmas langevin_dynamics
    langevin_step log_likelihood ncsn_loss posterior_score predictor_corrector probability_flow
    sample_posterior score_of sliced_score_matching
"""


def floor_of(module: str) -> int:
    """The floor of a module, such as `ncsn_jax.data.png`."""
    name = module.split(".")[1]
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith(f"{package}.")}


def upward_imports(directory: Path) -> list[str]:
    """Every import of a module on a higher floor, as "importer -> imported"."""
    found = []
    for path in sorted(directory.rglob("*.py")):
        module = ".".join([directory.name, *path.relative_to(directory).with_suffix("").parts])
        if path == directory / "__init__.py":  # the facade, whose names come from the lowest floors
            continue
        for name in imported(path, directory.name) - FORWARDS.get(module, set()):
            if floor_of(name) > floor_of(module):
                found.append(f"{module} -> {name}")
    return found


def test_every_module_has_a_floor():
    names = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names - {"__init__"} == {name for floor in FLOORS for name in floor}


def test_no_module_imports_from_a_higher_floor():
    assert upward_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses.py", "from ncsn_jax.runtime.errors import UserError"),
        ("models/mlp.py", "from ncsn_jax import app"),
        ("data/png.py", "import ncsn_jax.training.loop"),
        ("samplers/heun.py", "def lazily():\n    from ncsn_jax.models import NCSN"),
        ("training/loop.py", "from ncsn_jax.app.config import Config"),
        ("training/__init__.py", "from ncsn_jax.app.config import Config"),
    ],
)
def test_a_planted_upward_import_is_found(module, line, tmp_path):
    path = tmp_path / "ncsn_jax" / module
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    (found,) = upward_imports(tmp_path / "ncsn_jax")
    assert found.startswith("ncsn_jax." + module.removesuffix(".py").replace("/", "."))


def test_the_forwarded_functions_import_the_application_only_when_called():
    tree = ast.parse((PACKAGE / "training" / "__init__.py").read_text("utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [node.module for node in at_import if node.module and ".app" in node.module]


COMMAND_LINE = re.compile(
    r"(?<!\w)--(?!xla)[a-z]|\bconfig\.(data|model|training|sampling|restoration|evaluation)\."
)
"""Words of the command line in an error: a flag, or the name of a setting in a config."""


def words_of_the_command_line(path: Path) -> list[str]:
    """The strings of a file, other than docstrings, that hold such words."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # docstrings, and those of attributes
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
        if COMMAND_LINE.search(node.value)
    ]


def test_only_the_application_speaks_of_flags_and_configs():
    below = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "app"]
    assert {str(path): found for path in below if (found := words_of_the_command_line(path))} == {}
    assert words_of_the_command_line(PACKAGE / "app" / "flags.py")


def test_the_public_names_stay():
    assert sorted(ncsn_jax.__all__) == sorted(PUBLIC.split())
