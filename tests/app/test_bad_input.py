"""What can't be done ends in one line that says why, and leaves every directory as it was."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import main
from ncsn_jax import data
from ncsn_jax.app.flags import RESTORATIONS
from ncsn_jax.app.trained import load_run
from ncsn_jax.evaluation.inception import is_installed
from tests.interop.torch_writer import as_zip, whole

CONFIGS = Path(main.__file__).parent / "configs"
POINTS = [
    "--config=configs/toy.py:two_moons",
    "--config.model.num_features=4",
    "--config.model.num_scales=2",
    "--config.training.num_steps=2",
    "--config.training.batch_size=4",
    "--config.training.checkpoint_every=1",
    "--config.training.eval_examples=4",
    "--config.training.preview_samples=1",
    "--config.sampling.steps_per_scale=1",
    "--config.sampling.num_samples=4",
]
OF_RUNS = ("sample", *RESTORATIONS, "evaluate", "report", "suggest_noise")


class Bad(NamedTuple):
    """A case: the arguments, what the line says of them, what is done to the sandbox before, and meanwhile.

    `points` in a value of the arguments is a copy of a run on points, `images` of one on images; both are
    beside `configs` in the sandbox, which is the working directory.
    """

    arguments: str | list[str]
    says: str
    arrange: Callable[[], Any] = lambda: None
    meanwhile: Callable[[], AbstractContextManager] = contextlib.nullcontext


@pytest.fixture(scope="module")
def runs(data_dir, official, tmp_path_factory):
    """A run on points, trained for two steps, and one on images, imported from an official checkpoint."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CONFIGS.parent)
        assert main.main(["main.py", *POINTS, f"--workdir={place}/points"]) == 0
        write_official(place / "official.pth", official)
        options = ["--config=configs/digits.py", f"--config.data.data_dir={data_dir}"]
        options += [f"--checkpoint={place}/official.pth", f"--workdir={place}/images"]
        assert main.main(["main.py", "--mode=import", *options]) == 0
    data.load(load_run(place / "images").data)  # which TFDS prepares, and says so
    return place


def write_official(path, official):
    """The official network, as torch saves it with a fresh optimizer."""
    names = official["state_dict_names"].tolist()
    model = {f"module.{name}": whole(official[name], str(i)) for i, name in enumerate(names)}
    path.write_bytes(as_zip([model]))


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    before = sys.path.copy()
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = before  # on which the program puts its working directory


def without_privileges(function):
    """Calls a function where permission bits bind; as root, in a thread without its capabilities."""

    def give_up_and_call():
        if os.geteuid() == 0:
            version_and_thread, none = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None).capset(version_and_thread, none) == 0
        return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(give_up_and_call).result()


def contents(directory):
    """Everything in a directory but for locks, which only say who had them last."""
    return {
        path: path.is_symlink() or not path.is_file() or path.read_bytes()
        for path in directory.rglob("*")
        if not path.name.endswith("lock")
    }


def write(path: str, content: str | bytes = "precious"):
    """A step of an arrangement: the file holds just this."""

    def write():
        place = Path(path)
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def rewrite(path: str, change: Callable[[str], str]):
    """A step of an arrangement: the text of the file is changed."""
    return lambda: Path(path).write_text(change(Path(path).read_text()))


def forbid(path: str, mode: int = 0):
    """A step of an arrangement: a file or directory, made if need be, of those permissions."""

    def forbid():
        if not Path(path).exists():
            Path(path).mkdir()
        Path(path).chmod(mode)

    return forbid


def pictures(*sizes: tuple[int, int], directory: str = "photos"):
    """A step of an arrangement: a directory of grey images of those sizes."""

    def save():
        Path(directory).mkdir(exist_ok=True)
        for number, size in enumerate(sizes):
            Image.new("L", size, 100).save(f"{directory}/{number}.png")

    return save


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, and holds no pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT": b"", b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def steps(*arrangements: Callable[[], Any]):
    """Several steps of an arrangement."""

    def arrange():
        for arrangement in arrangements:
            arrangement()

    return arrange


def lock(directory: str, name: str = "lock"):
    """Meanwhile another process, of which this one knows no more, writes there."""

    @contextlib.contextmanager
    def lock():
        Path(directory).mkdir(exist_ok=True)
        with Path(directory, name).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return lock


def damage(*checkpoints: int):
    """A step of an arrangement: the arrays of those checkpoints of `points` are cut."""

    def damage():
        for step in checkpoints:
            for path in Path(f"points/checkpoints/{step}/state").rglob("d/*"):
                path.write_bytes(path.read_bytes()[:9])

    return damage


def without(directory: str):
    """A step of an arrangement: there is no such directory."""
    return lambda: shutil.rmtree(directory)


LONG = "n" * 300
FOLDER = "--config=configs/folder.py:8 --workdir=run --config.training.batch_size=4"
IMPORT = "--mode=import --workdir=run --config=configs/digits.py"

BAD_INPUT = {
    # Flags.
    "a mode that isn't": Bad("--mode=dream", "flag --mode=dream: value should be one of"),
    "a flag that isn't": Bad("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
    "a stray word": Bad("sample", "unexpected argument 'sample'"),
    "a stray word of two lines": Bad(["two\nlines"], "unexpected argument 'two\\nlines'"),
    "a flag without a value": Bad("--mode", "Missing value for flag --mode"),
    "a workdir without a name": Bad("--workdir=", "--workdir: found an empty name; accepted: a directory"),
    "steps without an evaluation": Bad("--mode=sample --steps=2", "--steps: only --mode evaluate accepts it"),
    "images without a restoration": Bad(
        "--mode=sample --images=0",
        "--images: only these modes accept it: inpaint, colorize, superres, denoise",
    ),
    "a checkpoint without an import": Bad("--checkpoint=x", "--checkpoint: only --mode import accepts it"),
    "no samples": Bad("--num_samples=0", "num_samples=0: input should be greater than 0"),
    "half a sample": Bad(
        "--num_samples=0.5", "flag --num_samples=0.5: invalid literal for int() with base 10: '0.5'"
    ),
    # Processes.
    "processes without a place": Bad("--num_processes=2", "some are missing; accepted: all of them"),
    "a process alone with a number": Bad("--process_id=1", "some are missing; accepted: all of them"),
    "a place alone": Bad("--coordinator_address=localhost:1234", "some are missing; accepted: all of them"),
    "no processes": Bad("--num_processes=0", "flag --num_processes=0: 0 is not a positive integer"),
    "a negative process": Bad("--process_id=-1", "flag --process_id=-1: -1 is not a non-negative integer"),
    "two and a half processes": Bad(
        "--num_processes=2.5", "flag --num_processes=2.5: invalid literal for int() with base 10: '2.5'"
    ),
    "a process too many": Bad(
        "--coordinator_address=localhost:1234 --num_processes=2 --process_id=2",
        "--process_id=2: accepted: 0 to 1, because num_processes=2",
    ),
    **{
        f"a place {case}": Bad(
            f"--coordinator_address={address} --num_processes=2 --process_id=0",
            f"--coordinator_address={address}: accepted: HOST:PORT of process 0, such as 10.0.0.1:1234",
        )
        for case, address in {
            "that is empty": "",
            "without a port": "localhost",
            "without a host": ":1234",
            "with a port of letters": "localhost:http",
            "with too large a port": "localhost:99999",
            "with port 0": "localhost:0",
        }.items()
    },
    # Configs.
    "no such config": Bad("--config=configs/cifra.py", "cifra"),
    "a config that is a directory": Bad("--config=configs", "configs"),
    "no such variant": Bad("--config=configs/mnist.py:tiny", "tiny: accepted: paper, small"),
    "no such network": Bad(
        "--config=configs/digits.py:v3", "ValueError: configs/digits.py:v3: accepted: ncsn, v2, ncsnpp, best"
    ),
    "no variants": Bad("--config=configs/svhn.py:small", "get_config() takes 0 positional arguments"),
    "no such points": Bad("--config=configs/toy.py:moons", "moons: accepted: two_gaussians, eight_gaussians"),
    "an odd size": Bad("--config=configs/folder.py:9", "folder.py:9: accepted: an even height and width"),
    "a config with a wrong syntax": Bad(
        "--config=c.py", "invalid syntax (c.py, line 1)", write("c.py", "def get_config(:")
    ),
    "a config with a mistake": Bad(
        "--config=c.py",
        "--config=c.py: no such setting or attribute: module 'math' has no attribute 'foo'",
        write("c.py", "import math; math.foo"),
    ),
    "a config that fails": Bad(
        "--config=c.py", "--config: ZeroDivisionError: division by zero", write("c.py", "1/0")
    ),
    "a config that imports what isn't": Bad(
        "--config=c.py", "No module named 'nowhere'", write("c.py", "import nowhere")
    ),
    "a config of another type": Bad(
        "--config=c.py",
        "must return an ml_collections.ConfigDict, found dict",
        write("c.py", "def get_config(): return {'seed': 1}"),
    ),
    "a config without a function": Bad(
        "--config=c.py",
        "--config: get_config() must return an ml_collections.ConfigDict, found dict",
        write("c.py", "get_konfig = None"),
    ),
    "a config of bytes": Bad(
        "--config=c.py", "source code string cannot contain null bytes", write("c.py", b"\x00\xff\xfe")
    ),
    "a config that can't be read": Bad(
        "--config=c.py",
        "Configuration is not available because of an earlier failure to load",
        steps(write("c.py", ""), forbid("c.py")),
    ),
    "a run's config": Bad(
        "--config=points/config.json",
        "--config=points/config.json: found JSON; --workdir=points reads the settings of a run; ",
    ),
    "a config beside a run": Bad(
        "--mode=sample --config=configs/toy.py --workdir=points",
        "--mode sample reads the settings of the run in points; omit --config",
    ),
    "a config beside a run to report": Bad(
        "--mode=report --config=configs/toy.py --workdir=points",
        "--mode report reads the settings of the run in points; omit --config",
    ),
    # Settings.
    "an unknown dataset": Bad("--config.data.name=cifar", "'cifar': unknown dataset; accepted: digits"),
    "an unknown setting": Bad("--config.training.batchsize=4", 'batchsize. Did you mean "batch_size"'),
    "an unknown group": Bad(
        "--config.trainer.batch_size=4",
        "--config.trainer.batch_size=4: no such setting or attribute: trainer",
    ),
    "a setting of a setting": Bad("--config.seed.x=4", "--config.seed.x=4: no such setting or attribute"),
    "a group of values": Bad(
        ["--config.training={'batch_size': 0}"], "batch_size=0: input should be greater"
    ),
    "a group that is a number": Bad(
        "--config.training=3",
        "flag --config.training=3: Failed to parse '3' as a ConfigDict: `3` is not a dict.",
    ),
    "a number of letters": Bad(
        "--config.training.batch_size=many",
        "flag --config.training.batch_size=many: invalid literal for int() with base 10: 'many'",
    ),
    "an option of letters": Bad(
        "--config.training.gradient_clip=many", "could not convert string to float: 'many'"
    ),
    "None for what isn't optional": Bad(
        "--config.training.batch_size=None",
        "config.training.batch_size=None: input should be a valid integer",
    ),
    "a number that isn't": Bad(
        "--config.training.learning_rate=nan",
        "config.training.learning_rate=nan: input should be a finite number",
    ),
    "a number without end": Bad("--config.training.learning_rate=inf", "learning_rate=inf: input should be"),
    "a huge seed": Bad(f"--config.sampling.seed={2**32}", "seed=4294967296: input should be less"),
    "a negative seed": Bad("--config.seed=-1", "config.seed=-1: input should be greater than or equal to 0"),
    "a vanishing sigma": Bad("--config.model.sigma_end=1e-50", "found sigma_begin=1.0, sigma_end=1e-50"),
    "ascending sigmas": Bad("--config.model.sigma_end=2.0", "sigma_begin=1.0, sigma_end=2.0"),
    "equal sigmas": Bad("--config.model.sigma_end=1.0", "sigma_begin=1.0, sigma_end=1.0"),
    "sigmas too large": Bad("--config.model.sigmas=1e40,1", "config.model.sigmas: found '1e40,1'; accepted"),
    "a setting that isn't read": Bad(
        "--config.model.sigmas=auto --config.model.num_scales=7",
        "--config.model.num_scales isn't read with config.model.sigmas='auto'",
    ),
    "a batch that can't be divided": Bad(
        "--config.training.batch_size=6", "batch_size=6 is not divisible by"
    ),
    "a batch of none": Bad("--config.training.batch_size=0", "batch_size=0: input should be greater"),
    "no steps": Bad("--config.training.num_steps=0", "num_steps=0: input should be greater than 0"),
    "no levels": Bad("--config.model.num_scales=0", "num_scales=0: input should be greater than 0"),
    "no Langevin steps": Bad(
        "--config.sampling.steps_per_scale=-1",
        "config.sampling.steps_per_scale=-1: input should be greater than 0",
    ),
    "no such objective": Bad(
        "--config.training.objective=explicit",
        "config.training.objective: found 'explicit'; accepted: 'denoising', 'sliced', or an import path",
    ),
    "an MLP of images": Bad(
        "--config=configs/toy.py --config.data.name=digits",
        "config.model.name='mlp' can't take the examples of config.data.name='digits'",
    ),
    "an NCSN of points": Bad(
        "--config.data.name=two_moons",
        "config.model.name='ncsn' can't take the examples of config.data.name='two_moons'",
    ),
    "mirrored points": Bad(
        "--config=configs/toy.py --config.data.random_flip=True",
        "config.data.random_flip=True: 'two_gaussians' are points, not images",
    ),
    "a batch larger than the data": Bad(
        "--config=configs/toy.py --config.training.batch_size=400000",
        "config.training.batch_size=400000 is more than the 50000 training examples; use at most that",
    ),
    # The data.
    "a data folder without a name": Bad(
        "--config.data.data_dir=", "config.data.data_dir='': string should have"
    ),
    "a folder that isn't named": Bad(FOLDER, "config.data.data_dir=None: 'folder' needs the directory"),
    "no such folder": Bad(f"{FOLDER} --config.data.data_dir=photos", "photos: can't be read (No such file"),
    "nobody's home": Bad(
        f"{FOLDER} --config.data.data_dir=~nobody-here/photos", "~nobody-here/photos: can't be"
    ),
    "a folder with a long name": Bad(
        f"{FOLDER} --config.data.data_dir={LONG}", "can't be read (File name too"
    ),
    "a folder that is a file": Bad(
        f"{FOLDER} --config.data.data_dir=photos", "photos: can't be read (Not a directory)", write("photos")
    ),
    "an empty folder": Bad(
        f"{FOLDER} --config.data.data_dir=photos", "photos: images found: 0; accepted", pictures()
    ),
    "a folder of one image": Bad(
        f"{FOLDER} --config.data.data_dir=photos", "photos: images found: 1; accepted", pictures((9, 9))
    ),
    "a folder that can't be read": Bad(
        f"{FOLDER} --config.data.data_dir=photos",
        "photos: can't be read (Permission denied)",
        forbid("photos"),
    ),
    "an image that can't be read": Bad(
        f"{FOLDER} --config.data.data_dir=photos",
        "photos/1.png: can't be decoded (PermissionError",
        steps(pictures(*[(9, 9)] * 8), forbid("photos/1.png")),
    ),
    "an image that is none, of a name of two lines": Bad(
        f"{FOLDER} --config.data.data_dir=photos",
        "photos/two\\nlines.png': can't be decoded",
        steps(pictures(*[(9, 9)] * 8), write("photos/two\nlines.png")),
    ),
    "a folder of less than a batch": Bad(
        f"{FOLDER} --config.data.data_dir=photos --config.model.sigmas=geometric",
        "config.training.batch_size=4 is more than the 2 training examples; use at most that",
        pictures((9, 9), (8, 8), (7, 7)),
    ),
    "a folder of one image many times": Bad(
        f"{FOLDER} --config.data.data_dir=photos",
        "config.data.name='folder' suggests no noise levels: all 6 examples are equal",
        pictures(*[(9, 9)] * 8),
    ),
    "noise levels of a folder that isn't": Bad(
        "--mode=suggest_noise --config=configs/folder.py:8 --config.data.data_dir=photos",
        "photos: can't be read (No such file",
    ),
    "noise levels of a setting that isn't": Bad(
        "--mode=suggest_noise --config.model.sigma_end=100", "sigma_begin=1.0, sigma_end=100"
    ),
    # A workdir that isn't, or isn't one.
    **{
        f"{mode} without a run": Bad(
            f"--mode={mode} --workdir=nowhere",
            "main.py: nowhere holds no run (no config.json): train one there first",
        )
        for mode in OF_RUNS
    },
    "training in a bucket": Bad(
        "--config=configs/digits.py --workdir=gs://bucket/run",
        "--workdir=gs://bucket/run: a workdir is a local directory; --config.training.checkpoint_dir may",
    ),
    "checkpoints in a bucket without the extra": Bad(
        "--config=configs/toy.py --workdir=run --config.training.checkpoint_dir=gs://bucket/run",
        "install gcsfs to access Google Storage; pip install -e '.[gcs]' for gs://",
    ),
    "checkpoints in another kind of bucket": Bad(
        "--config=configs/toy.py --workdir=run --config.training.checkpoint_dir=s3://bucket/run",
        "config.training.checkpoint_dir: found 's3://bucket/run'; accepted: a directory, or a bucket",
    ),
    "checkpoints in a file": Bad(
        "--config=configs/toy.py --workdir=run --config.training.checkpoint_dir=file",
        "/file is not a writable directory)",
        write("file"),
    ),
    "data in a bucket without the extra": Bad(
        "--config=configs/digits.py --workdir=run --config.data.data_dir=gs://bucket/tfds",
        "config.data.data_dir='gs://bucket/tfds': Please install gcsfs to access Google Storage; pip install",
    ),
    "checkpoints that are elsewhere": Bad(
        "--workdir=points --config.training.checkpoint_dir=empty",
        "empty' holds no checkpoint, and points/checkpoints does: use that one, or copy its checkpoints",
    ),
    "checkpoints that are lost": Bad(
        "--workdir=points",
        "points/checkpoints holds no checkpoint, and points/metrics.jsonl reaches step 2: restore the c",
        without("points/checkpoints"),
    ),
    "samples that are a file to train": Bad(
        "--workdir=points", "points/samples is not a directory: move it away", write("points/samples")
    ),
    "training in a mistyped workdir": Bad(
        "--workdir=rnus/mine",
        "rnus/mine holds no run (no config.json): name the config of a new one, such as --config=",
    ),
    "evaluating images in a mistyped workdir": Bad(
        "--mode=evaluate --images=photos --workdir=rnus/mine",
        "rnus/mine holds no run (no config.json): name the config of a new one",
        pictures((8, 8)),
    ),
    "sampling the default workdir": Bad(
        "--mode=sample --config=configs/mnist.py:small", "runs/mnist_small holds no run (no config.json)"
    ),
    "training in a file": Bad(
        "--config=configs/digits.py --workdir=file", "file can't be written (file is not a", write("file")
    ),
    "training below a file": Bad(
        "--config=configs/digits.py --workdir=file/run", "/file is not a writable directory", write("file")
    ),
    "sampling below a file": Bad(
        "--mode=sample --workdir=file/run",
        "file/run holds no run (no config.json): train one there first",
        write("file"),
    ),
    "importing into a file": Bad(
        f"{IMPORT} --checkpoint=official.pth --workdir=file",
        "file can't be written (file is not a writable directory)",
        write("file"),
    ),
    "training in other people's things": Bad(
        "--config=configs/digits.py --workdir=theirs",
        "theirs is not empty and holds no run (no config.json)",
        write("theirs/thesis.tex"),
    ),
    "training in a link to nowhere": Bad(
        "--config=configs/digits.py --workdir=link",
        "link can't be written (link is not a writable directory)",
        lambda: Path("link").symlink_to("nowhere/at/all"),
    ),
    "training in a circle of links": Bad(
        "--config=configs/digits.py --workdir=link",
        "link can't be written (link is not a writable directory)",
        lambda: Path("link").symlink_to("link"),
    ),
    "sampling a link to nowhere": Bad(
        "--mode=sample --workdir=link",
        "link holds no run (no config.json): train one there first",
        lambda: Path("link").symlink_to("nowhere"),
    ),
    "training where nothing may be written": Bad(
        "--config=configs/digits.py --workdir=locked/run",
        "/locked is not a writable directory",
        forbid("locked", 0o500),
    ),
    "training where nothing may be seen": Bad(
        "--config=configs/digits.py --workdir=locked/run",
        "[Errno 13] Permission denied: 'locked/run/config.json'",
        forbid("locked"),
    ),
    "sampling where nothing may be seen": Bad(
        "--mode=sample --workdir=locked/run",
        "[Errno 13] Permission denied: 'locked/run/config.json'",
        forbid("locked"),
    ),
    "a long name": Bad(f"--config=configs/digits.py --workdir={LONG}", "File name too long"),
    "sampling a long name": Bad(f"--mode=sample --workdir={LONG}", "File name too long"),
    "a name of two lines": Bad(
        ["--mode=sample", "--workdir=two\nlines"],
        "two lines holds no run (no config.json): train one there first",
    ),
    "a name of bytes": Bad(
        ["--mode=sample", "--workdir=run\udcff"], "run\\udcff': accepted: a name in UTF-8"
    ),
    "a name of percents": Bad(
        "--mode=sample --workdir=%s%d%20", "%s%d%20 holds no run (no config.json): train one there first"
    ),
    "a name that begins with a dash": Bad(
        "--mode=sample --workdir -run", "-run holds no run (no config.json): train one there first"
    ),
    "a name with quotes": Bad(
        ["--mode=sample", '--workdir=an "o\'run"'],
        'an "o\'run" holds no run (no config.json): train one there first',
    ),
    "nobody's workdir": Bad("--mode=sample --workdir=~nobody-here/run", "~nobody-here/run holds no run"),
    # A config.json that isn't one.
    **{
        f"{verb} a config.json that {what}": Bad(
            f"--mode={mode} --workdir=points",
            f"points/config.json is not this program's config: {says}",
            write("points/config.json", content),
        )
        for verb, mode in {"training by": "train", "sampling": "sample", "reporting": "report"}.items()
        for what, content, says in [
            ("is empty", "", "Expecting value"),
            ("is cut", '{"seed": 0, "da', "Unterminated string"),
            ("is another program's", '{"lr": 0.1}', "config.lr=0.1: extra inputs"),
            ("is a list", "[]", "config=[]"),
            ("has a number for a group", '{"model": 3}', "config.model=3"),
            ("is no text", b"\x80\xff", "'utf-8' codec can't decode"),
        ]
    },
    "a deep config.json": Bad(
        "--mode=sample --workdir=points",
        "points/config.json is not this program's config",
        write("points/config.json", "[" * 100_000),
    ),
    "sampling a config.json that is a directory": Bad(
        "--mode=sample --workdir=points",
        "points holds no run (no config.json): train one there first",
        steps(lambda: Path("points/config.json").unlink(), lambda: Path("points/config.json").mkdir()),
    ),
    "training by a config.json that is a directory": Bad(
        "--workdir=points",
        "points holds no run (no config.json)",
        steps(lambda: Path("points/config.json").unlink(), lambda: Path("points/config.json").mkdir()),
    ),
    "a config.json that can't be read": Bad(
        "--mode=evaluate --workdir=points",
        "[Errno 13] Permission denied: 'points/config.json'",
        forbid("points/config.json"),
    ),
    # Other people's runs.
    "another config's run": Bad(
        "--workdir=points --config=configs/toy.py", "data.name='two_moons', not 'two_gaussians'"
    ),
    "another setting": Bad("--workdir=points --config.model.num_scales=5", "model.num_scales=2, not 5"),
    "fewer steps than there are": Bad(
        "--workdir=points --config.training.num_steps=1",
        "points holds a run with training.num_steps=2, not 1: use its settings",
    ),
    "a trained run's setting": Bad(
        "--mode=sample --workdir=points --config.model.num_scales=5",
        "--config.model.num_scales: a trained run's settings are fixed; accepted: config.sampling.*, con",
    ),
    "another process": Bad(
        "--workdir=points", "points is being written by process", meanwhile=lock("points")
    ),
    "another process samples": Bad(
        "--mode=sample --workdir=points",
        "points/samples is being written by process",
        meanwhile=lock("points", "samples.lock"),
    ),
    "another process imports": Bad(
        f"{IMPORT} --checkpoint=official.pth",
        "run is being written by another process",
        meanwhile=lock("run"),
    ),
    # Checkpoints.
    "no checkpoints": Bad(
        "--mode=sample --workdir=points",
        "holds no checkpoint yet: continue training",
        without("points/checkpoints"),
    ),
    "evaluating no checkpoints": Bad(
        "--mode=evaluate --workdir=points",
        "holds no checkpoint yet: continue training",
        without("points/checkpoints"),
    ),
    **{
        f"{verb} checkpoints that are {what}": Bad(f"--mode={mode} --workdir=points", says, arrange)
        for verb, mode in {"training from": "train", "sampling": "sample"}.items()
        for what, says, arrange in [
            ("a file", "points/checkpoints is not a directory: move it away", write("points/checkpoints")),
            ("damaged", "no checkpoint is intact (2: its arrays can't be read", damage(1, 2)),
            (
                "of empty directories",
                "no checkpoint is intact (2: its record can't be read",
                steps(
                    *(
                        lambda n=n: (shutil.rmtree(n), Path(n).mkdir())
                        for n in ("points/checkpoints/1", "points/checkpoints/2")
                    )
                ),
            ),
            (
                "of another run",
                "holds a run with model.num_features=4, not 5",
                rewrite("points/config.json", lambda text: text.replace('features": 4', 'features": 5')),
            ),
            (
                "of an older version",
                "was written by an older version of ncsn_jax, without checksums",
                lambda: Path("points/checkpoints/2/default").mkdir(),
            ),
            (
                "not to be read",
                "can't be read (Permission denied): fix its permissions",
                forbid("points/checkpoints/2/record/metadata"),
            ),
            ("not to be seen", "points/checkpoints'", forbid("points/checkpoints")),
            (
                "not to be entered",
                "points/checkpoints/2 can't be read (Permission denied): fix its permissions",
                forbid("points/checkpoints/2"),
            ),
        ]
    },
    "evaluating checkpoints of another run": Bad(
        "--mode=evaluate --workdir=points",
        "points/checkpoints/1 holds a run with model.num_features=4, not 5: use its settings",
        rewrite("points/config.json", lambda text: text.replace('features": 4', 'features": 5')),
    ),
    "sampling checkpoints of other noise levels": Bad(
        "--mode=sample --workdir=points",
        "points/checkpoints/2 holds a run with model.sigma_begin=10.0, not 9.0: use its settings",
        rewrite("points/config.json", lambda text: text.replace('begin": 10.0', 'begin": 9.0')),
    ),
    "a damaged checkpoint's evaluation": Bad(
        "--mode=evaluate --workdir=points --steps=2",
        "checkpoints/2 is damaged: its arrays can't be",
        damage(2),
    ),
    # What training would write.
    "metrics that are no text": Bad(
        "--workdir=points",
        "points/metrics.jsonl is not this program's: found '\\\\x80\\\\xff'; move it away",
        write("points/metrics.jsonl", b"\x80\xff\n"),
    ),
    "metrics with an infinite step": Bad(
        "--workdir=points",
        "points/metrics.jsonl is not this program's",
        write("points/metrics.jsonl", '{"step": 1e999}\n'),
    ),
    "metrics that are no numbers": Bad(
        "--workdir=points",
        "points/metrics.jsonl is not this program's: found 'precious'; move it away",
        write("points/metrics.jsonl", "precious\n"),
    ),
    "metrics of another program": Bad(
        "--workdir=points",
        "points/metrics.jsonl is not this program's: found '[1]'; move it away, then rerun",
        write("points/metrics.jsonl", "[1]\n"),
    ),
    "metrics that are a directory": Bad(
        "--workdir=points",
        "[Errno 21] Is a directory: 'points/metrics.jsonl'",
        steps(lambda: Path("points/metrics.jsonl").unlink(), write("points/metrics.jsonl/x")),
    ),
    "curves that are a file": Bad(
        "--workdir=points", "points/tensorboard is not a directory: move it away", write("points/tensorboard")
    ),
    "samples that are a file": Bad(
        "--mode=sample --workdir=points", "[Errno 17] File exists: 'points/samples'", write("points/samples")
    ),
    "samples that can't be written": Bad(
        "--mode=sample --workdir=points",
        "Permission denied: 'points/samples/samples.npy.partial'",
        forbid("points/samples", 0o500),
    ),
    "a report that is a directory": Bad(
        "--mode=report --workdir=points",
        "[Errno 21] Is a directory: 'points/report.html.partial' -> 'points/report.html'",
        write("points/report.html/x"),
    ),
    "a report that can't be written": Bad(
        "--mode=report --workdir=points",
        "[Errno 13] Permission denied: 'points/report.html.partial'",
        forbid("points", 0o500),
    ),
    # Restorations.
    "inpainting points": Bad("--mode=inpaint --workdir=points", "config.data.name='two_moons' are points"),
    "interpolating points": Bad(
        "--mode=interpolate --workdir=points",
        "--mode interpolate draws images; config.data.name='two_moons' are points",
    ),
    "colorizing grey": Bad(
        "--mode=colorize --workdir=images", "--mode colorize needs a run of colour images"
    ),
    "denoising no noise": Bad(
        "--mode=denoise --workdir=images", "config.restoration.noise=0.0: --mode denoise"
    ),
    "blocks that don't tile": Bad(
        "--mode=superres --workdir=images --config.restoration.factor=3",
        "factor=3: blocks of that side don't",
    ),
    "a mask that isn't": Bad(
        "--mode=inpaint --workdir=images --config.restoration.mask=middle",
        "mask='middle': middle: no such file or directory; accepted: left, right",
    ),
    "a mask of another size": Bad(
        "--mode=inpaint --workdir=images --config.restoration.mask=photos/0.png",
        "mask='photos/0.png': found 9×9 pixels; accepted: left",
        pictures((9, 9)),
    ),
    "a mask too large to decode": Bad(
        "--mode=inpaint --workdir=images --config.restoration.mask=huge.png",
        "mask='huge.png': huge.png: can't be decoded (DecompressionBombError",
        write("huge.png", png_of(20_000, 20_000)),
    ),
    "a mask of real numbers": Bad(
        "--mode=inpaint --workdir=images --config.restoration.mask=real.tiff",
        "real.tiff: can't be decoded (found numbers from 0.5 to 0.5 in the mode F, which has no fixed range",
        lambda: Image.fromarray(np.full((8, 8), 0.5, np.float32)).save("real.tiff"),
    ),
    "no such images": Bad(
        "--mode=inpaint --workdir=images --images=nowhere",
        "--images=nowhere: no such file or directory; accepted: a path",
    ),
    "numbers with a dash": Bad(
        "--mode=inpaint --workdir=images --images=0-3",
        "--images=0-3: no such file or directory; accepted: a path, or numbers of test images such as 0,",
    ),
    "nobody's images": Bad(
        "--mode=inpaint --workdir=images --images=~nobody-here", "~nobody-here: no such file"
    ),
    "images of a long name": Bad(f"--mode=inpaint --workdir=images --images={LONG}", "File name too long"),
    "images without a name": Bad(
        ["--mode=inpaint", "--workdir=images", "--images="],
        "--images: found an empty name; accepted: numbers, a directory or a file",
    ),
    "numbers of no images": Bad(
        "--mode=inpaint --workdir=images --images=999", "numbers of the 297 test images"
    ),
    "numbers backwards": Bad(
        "--mode=inpaint --workdir=images --images=5:2", "--images=5:2: accepted: numbers"
    ),
    "a huge number": Bad(
        f"--mode=inpaint --workdir=images --images=0:{10**30}", "accepted: numbers of the 297"
    ),
    "a directory without images": Bad(
        "--mode=inpaint --workdir=images --images=photos",
        "photos: no images found; accepted: .png, .jpg, .jpeg, .webp, in any subdirectories",
        pictures(),
    ),
    "text for an image": Bad(
        "--mode=inpaint --workdir=images --images=text.png", "text.png: can't be decoded", write("text.png")
    ),
    "observations of another size": Bad(
        "--mode=superres --workdir=images --images=photos --config.restoration.given=observations",
        "--images=photos: found images of the shape (9, 9, 1); accepted: (4, 4, 1)",
        pictures((9, 9)),
    ),
    "latents of a network that has none": Bad(
        "--mode=interpolate --workdir=images --config.restoration.through=latents",
        "config.restoration.through='latents' needs scores at any σ, found model.name='ncsn'",
    ),
    "images for no latents": Bad(
        "--mode=interpolate --workdir=images --images=0:4",
        "--images isn't read with config.restoration.through='noise'",
    ),
    # Samples.
    "a sampler that asks for any noise": Bad(
        "--mode=sample --workdir=images --config.sampling.method=heun",
        "method='heun' needs scores at any σ",
    ),
    "no such sampler": Bad(
        "--mode=sample --workdir=points --config.sampling.method=euler",
        "config.sampling.method='euler': input should be 'annealed', 'consistent', 'pc'",
    ),
    "a set without a sampling": Bad(
        "--mode=evaluate --out=mine --workdir=points", "--out: only these modes accept it"
    ),
    "a set elsewhere": Bad(
        "--mode=sample --out=../mine --workdir=points",
        "--out=../mine: accepted: a name of letters, digits, - and _",
    ),
    "a setting of no sampler": Bad(
        "--mode=sample --workdir=points --config.sampling.method=consistent --config.sampling.eta=0.1",
        "config.sampling.method='consistent': eta=0.1",
    ),
    # Evaluation and report.
    "a checkpoint that isn't": Bad(
        "--mode=evaluate --workdir=points --steps=3", "holds no checkpoint of step 3; accepted: [1, 2]"
    ),
    "steps in words": Bad(
        "--mode=evaluate --workdir=points --steps=two", "--steps=two: accepted: steps such as"
    ),
    "no steps at all": Bad(
        "--mode=evaluate --workdir=points --steps=", "--steps=: accepted: steps such as 1000,2000"
    ),
    "steps of images": Bad(
        "--mode=evaluate --workdir=images --steps=2 --images=x.npz",
        "--steps: --images are measured instead of checkpoints",
    ),
    "pictures of points": Bad(
        "--mode=evaluate --workdir=points --images=x.npz",
        "images can't be compared with 'two_moons', which are points",
    ),
    "no such array": Bad(
        "--mode=evaluate --workdir=images --images=x.npz", "x.npz: can't be read as an array"
    ),
    "an array that is text": Bad(
        "--mode=evaluate --workdir=images --images=x.npz", "x.npz: can't be read as an array", write("x.npz")
    ),
    "an array with a damaged header": Bad(
        "--mode=evaluate --workdir=images --images=x.npy",
        "x.npy: can't be read as an array",
        lambda: Path("x.npy").write_bytes(
            b"\x93NUMPY\x01\x00\x40\x00{'descr': '|u1', 'shape': (2,8,8,".ljust(74) + b"\n"
        ),
    ),
    "an array of one number": Bad(
        "--mode=evaluate --workdir=images --images=x.npy",
        "x.npy: found float64 of the shape (1,); accepted",
        lambda: np.save("x.npy", [0.5]),
    ),
    "an array of other images": Bad(
        "--mode=evaluate --workdir=images --images=x.npy",
        "accepted: (8, 8, 1), as in 'digits'",
        lambda: np.save("x.npy", np.zeros((2, 9, 9, 1), np.uint8)),
    ),
    "an array of another range": Bad(
        "--mode=evaluate --workdir=images --images=x.npy",
        "found numbers from 200 to 200; accepted: [0, 1]",
        lambda: np.save("x.npy", np.full((2, 8, 8, 1), 200.0)),
    ),
    "no images to evaluate": Bad(
        "--mode=evaluate --workdir=images --images=nowhere", "nowhere: no such file or directory"
    ),
    **(
        {}
        if is_installed()
        else {
            "Inception without torch": Bad(
                "--mode=evaluate --workdir=images --config.evaluation.features=inception",
                "Inception-v3's features need torch-fidelity: pip install -e '.[fid]'",
            )
        }
    ),
    "metrics that are a number": Bad(
        "--mode=evaluate --workdir=points",
        "config.evaluation.metrics: found '5'; accepted: 'all', or some of",
        rewrite("points/config.json", lambda text: text.replace('"metrics": "all"', '"metrics": 5')),
    ),
    "no such metric": Bad(
        "--mode=evaluate --workdir=images --config.evaluation.metrics=fid",
        "found 'fid'; accepted: 'all', or some",
    ),
    "a likelihood of levels": Bad(
        "--mode=evaluate --workdir=images --config.evaluation.metrics=likelihood",
        "likelihood: it needs scores at any σ",
    ),
    "no such features": Bad(
        "--mode=evaluate --workdir=images --config.evaluation.features=vgg",
        "config.evaluation.features='vgg': input should be 'auto', 'classifier'",
    ),
    "features of points": Bad(
        "--mode=evaluate --workdir=points --config.evaluation.features=inception",
        "are points, compared by their",
    ),
    "one sample to judge": Bad(
        "--mode=evaluate --workdir=points --num_samples=1",
        "config.evaluation.num_samples=1: input should be greater than or equal to 2",
    ),
    "an evaluation that is a file": Bad(
        "--mode=evaluate --workdir=points",
        "[Errno 20] Not a directory: 'points/eval/parts/samples-",
        write("points/eval"),
    ),
    "an evaluation of another program": Bad(
        "--mode=report --workdir=points",
        "x.json is not an evaluation of this program",
        write("points/eval/x.json"),
    ),
    "a report with a setting": Bad(
        "--mode=report --workdir=points --config.sampling.seed=1",
        "--config.sampling.seed: --mode report shows",
    ),
    # Imports.
    "an import of nothing": Bad(
        "--mode=import --workdir=run", "--mode import needs --checkpoint FILE and --workdir DIR"
    ),
    "an import to nowhere": Bad(
        "--mode=import --checkpoint=x", "--mode import needs --checkpoint FILE and --workdir DIR"
    ),
    "no such checkpoint": Bad(
        f"{IMPORT} --checkpoint=no.pth", "[Errno 2] No such file or directory: 'no.pth'"
    ),
    "a checkpoint that is a directory": Bad(
        f"{IMPORT} --checkpoint=configs", "configs is not a regular file"
    ),
    "a checkpoint that is a pipe": Bad(
        f"{IMPORT} --checkpoint=pipe", "pipe is not a regular file", lambda: os.mkfifo("pipe")
    ),
    "a checkpoint of a long name": Bad(f"{IMPORT} --checkpoint={LONG}", "File name too long"),
    "a checkpoint of text": Bad(
        f"{IMPORT} --checkpoint=text", "text is not a PyTorch checkpoint", write("text")
    ),
    "an empty checkpoint": Bad(
        f"{IMPORT} --checkpoint=empty",
        "empty is not a PyTorch checkpoint: it begins with b''; accepted: b'PK",
        write("empty", ""),
    ),
    "a checkpoint that can't be read": Bad(
        f"{IMPORT} --checkpoint=secret",
        "[Errno 13] Permission denied: 'secret'",
        steps(write("secret"), forbid("secret")),
    ),
    "a checkpoint that is cut": Bad(
        f"{IMPORT} --checkpoint=official.pth",
        "official.pth is a truncated or damaged zip archive: it doesn't end with its directory",
        lambda: Path("official.pth").write_bytes(Path("official.pth").read_bytes()[:-99]),
    ),
    "a checkpoint of other tensors": Bad(
        f"{IMPORT} --checkpoint=x.pth",
        "x.pth: not a state dict of an NCSN, NCSNv2 or NCSN++: it has no begin_conv.weight with four axes",
        lambda: Path("x.pth").write_bytes(as_zip([{"weight": whole(np.zeros(3, np.float32), "0")}])),
    ),
    "a checkpoint of one number": Bad(
        f"{IMPORT} --checkpoint=x.pth",
        "x.pth: found int; accepted: a list [model, optimizer] or [model, optimizer, epoch",
        lambda: Path("x.pth").write_bytes(as_zip(3)),
    ),
    "an import into a run": Bad(
        "--mode=import --checkpoint=official.pth --workdir=points",
        "points holds a run already: choose another",
    ),
    "an import into other people's things": Bad(
        f"{IMPORT} --checkpoint=official.pth", "run is not empty and holds no run", write("run/thesis.tex")
    ),
    "an import for points": Bad(
        "--mode=import --checkpoint=official.pth --workdir=run --config=configs/toy.py",
        "config.data.name='two_gaussians' has the shape (2,)",
    ),
    "an import of another width": Bad(
        f"{IMPORT} --checkpoint=official.pth --config.model.num_filters=3",
        "config.model.num_filters=3: the checkpoint's network has 8",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_exits_with_one_error_line_and_changes_no_file(case, runs, sandbox, capfd):
    bad = BAD_INPUT[case]
    arguments = bad.arguments.split() if isinstance(bad.arguments, str) else bad.arguments
    for name in ("points", "images"):
        if any(name in value for value in arguments):
            shutil.copytree(runs / name, name)
    if "--checkpoint=official.pth" in arguments:
        shutil.copy(runs / "official.pth", ".")
    bad.arrange()
    with bad.meanwhile():
        before = contents(sandbox)
        status = without_privileges(lambda: main.main(["main.py", *arguments]))
    errors = [line for line in capfd.readouterr().err.splitlines() if "resumes from step" not in line]
    assert status in (1, 2)
    assert len(errors) == 1, errors
    assert errors[0].startswith("main.py: ")
    assert bad.says in errors[0]
    assert contents(sandbox) == before
