"""Checkpoints of torch, honest (made by torch_writer.py), damaged and hostile."""

import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest

from ncsn_jax.interop import torch_checkpoint
from ncsn_jax.interop.torch_checkpoint import load_torch_checkpoint
from tests.interop.torch_writer import (
    REBUILD_PARAMETER,
    SIZE,
    STORAGES,
    Call,
    Storage,
    archive,
    as_stream,
    as_zip,
    dumps,
    stream,
    tensor,
    whole,
)

MIB = 2**20


def checkpoint(tensors):
    """The model's state, with its modules' metadata, and the optimizer's, as the official code saves them."""
    model = OrderedDict(
        (f"module.{name}", whole(values, str(i))) for i, (name, values) in enumerate(tensors.items())
    )
    model._metadata = OrderedDict([("", {"version": 1}), ("module", {"version": 1})])
    ids = [140204846120000 + i for i in range(len(tensors))]
    state = {ids[0]: {"step": 2, "exp_avg": whole(np.ones(3, np.float32), "m")}}
    return [model, {"state": state, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": ids}]}]


@pytest.fixture
def load(tmp_path):
    def load(data):
        (tmp_path / "checkpoint.pth").write_bytes(data)
        return load_torch_checkpoint(tmp_path / "checkpoint.pth")

    return load


@pytest.fixture(scope="module")
def weights(official):
    return {name: official[name] for name in official["state_dict_names"].tolist()}


both = pytest.mark.parametrize("write", [as_zip, as_stream])


@both
def test_an_official_checkpoint_is_read_with_its_optimizer_state(write, load, weights):
    model, optimizer = load(write(checkpoint(weights)))
    assert type(model) is dict
    assert list(model) == [f"module.{name}" for name in weights]
    for name, values in weights.items():
        loaded = model[f"module.{name}"]
        assert loaded.dtype == values.dtype
        assert loaded.flags.writeable
        np.testing.assert_array_equal(loaded, values)
    first = 140204846120000
    assert optimizer["param_groups"] == [
        {"lr": 1e-3, "betas": (0.9, 0.999), "params": list(range(first, first + len(weights)))}
    ]
    assert optimizer["state"][first]["step"] == 2
    np.testing.assert_array_equal(optimizer["state"][first]["exp_avg"], np.ones(3))


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_is_read_in_every_pickle_protocol(write, protocol, load):
    values = np.arange(24, dtype=np.float32)
    shared = Storage(values, "shared")
    # Long enough that protocol 4 begins frames and memoizes beyond one byte.
    padding = [f"name {i}" for i in range(300)]
    saved = OrderedDict(
        {
            "plain": [
                None,
                True,
                False,
                0,
                -1,
                2**31,
                -(2**40),
                1.5,
                "σ",
                (),
                (1,),
                (1, 2),
                (1, 2, 3, 4),
                padding,
            ],
            "size": Call(SIZE, ((2, 3),)),
            "whole": tensor(shared, (4, 6), (6, 1)),
            "transposed": tensor(shared, (6, 4), (1, 6)),
            "expanded": tensor(shared, (5, 3), (0, 1), offset=21),
            "offset": tensor(shared, (2, 3), (6, 2), offset=13),
            "scalar": tensor(shared, (), (), offset=7),
            "empty": tensor(shared, (0, 4), (4, 1)),
            "nothing": whole(np.zeros(0, np.float32), "none"),
            "parameter": Call(REBUILD_PARAMETER, (tensor(shared, (24,), (1,)), True, OrderedDict())),
            "cuda": whole(values * 2, "cuda", device="cuda:0"),
            **{kind: whole((values % 2).astype(dtype), kind) for kind, dtype in STORAGES.items()},
        }
    )
    loaded = load(write(saved, protocol=protocol))

    assert loaded["plain"] == saved["plain"]
    assert loaded["size"] == (2, 3)
    grid = values.reshape(4, 6)
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "expanded": np.tile(values[21:24], (5, 1)),
        "offset": grid[2:, 1::2],
        "scalar": values[7],
        "empty": np.zeros((0, 4)),
        "nothing": np.zeros(0),
        "parameter": values,
        "cuda": values * 2,
    }
    for name, array in expected.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)
    for kind, dtype in STORAGES.items():
        assert loaded[kind].dtype == dtype
        np.testing.assert_array_equal(loaded[kind].astype(np.float32), values % 2)
    loaded["transposed"][1, 2] = -1
    assert loaded["whole"][2, 1] == loaded["parameter"][13] == loaded["offset"][0, 0] == -1


@both
@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_scalars_of_numpy_become_numbers(write, protocol, load):
    """In protocol 2, their bytes are an encoded string."""
    loaded = load(
        write({"lr": np.float64(2e-4), "count": np.int64(-3), "on": np.bool_(True)}, protocol=protocol)
    )
    assert loaded == {"lr": 2e-4, "count": -3, "on": True}
    assert [type(value) for value in loaded.values()] == [float, int, bool]


def test_scalars_of_numpy_before_version_2_become_numbers(load):
    data, _ = dumps([np.float64(2e-4)])
    older = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != data
    assert load(archive({"data.pkl": older})) == [2e-4]


def test_views_of_one_storage_in_a_stream_share_memory(load):
    """In streams a storage can be part of another."""
    values = np.arange(10, dtype=np.float32)
    saved = [tensor(Storage(values, "0", view=("v", 4, 6)), (2, 3), (3, 1)), whole(values, "0")]
    part, all_values = load(as_stream(saved))
    np.testing.assert_array_equal(part, values[4:].reshape(2, 3))
    assert np.shares_memory(part, all_values)


def test_a_missing_checkpoint_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_torch_checkpoint(tmp_path / "none.pth")


# Everything below is refused.

P2 = b"\x80\x02"
REBUILD_NAME = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def reference(count=4, *, key=b"0", kind=b"torch\nFloatStorage", device=b"cpu", more=b""):
    key = key if key[:1] in b"K(" else text(key)
    return b"(" + text(b"storage") + b"c" + kind + b"\n" + key + text(device) + number(count) + more + b"tQ"


def numbers(*values):
    return b"(" + b"".join(value if isinstance(value, bytes) else number(value) for value in values) + b"t"


def raw_tensor(size=(4,), strides=(1,), offset=0, storage=None):
    offset = offset if isinstance(offset, bytes) else number(offset)
    storage = reference() if storage is None else storage
    return REBUILD_NAME + b"(" + storage + offset + numbers(*size) + numbers(*strides) + b"\x89}tR"


def zipped(opcodes, **records):
    return archive({"data.pkl": P2 + opcodes + b".", "data/0": bytes(16), **records})


def repeated(unit, before=b"", after=b""):
    """A pickle of just under 1 MiB, mostly one unit."""
    return zipped(before + unit * ((MIB - 3 - len(before) - len(after)) // len(unit)) + after)


def patched(data, signature, at, value):
    """The data with bytes after the last occurrence of a zip's signature replaced."""
    at += data.rindex(signature)
    return data[:at] + value + data[at + len(value) :]


def named(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target, mock.patch("warnings.warn"):
        for name in names:
            target.writestr(name, P2 + b"N.")
    return file.getvalue()


def directory_of(count):
    """A zip whose directory is `count` times the same record."""
    data = archive({"data.pkl": P2 + b"N."})
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    directory = data[start:end] * count
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    return data[:start] + directory + zip64 + locator + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)


def bomb():
    """A storage of 250 MiB in 1 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        target.writestr("a/data.pkl", P2 + reference(250 * MIB // 4) + b".", zipfile.ZIP_STORED)
        target.writestr("a/data/0", bytes(250 * MIB))
    return file.getvalue()


def overlapping():
    """Two thousand storages that are all the same MiB of the file."""
    storage = b"".join(reference(MIB // 4, key=f"{i}".encode()) + b"a" for i in range(2000))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("a/data.pkl", P2 + b"]" + storage + b".")
        target.writestr("a/data/0", bytes(MIB))
        for i in range(1, 2000):
            record = zipfile.ZipInfo(f"a/data/{i}")
            first = target.filelist[1]
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(record, name, getattr(first, name))
            target.filelist.append(record)
    return file.getvalue()


def colliding():
    keys = (b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(80_000))
    return zipped(b"}(" + b"".join(keys) + b"u")


ONE = np.arange(4, dtype=np.float32)
ZIP = as_zip([whole(ONE, "0"), "text"])
STREAM = as_stream([whole(ONE, "0"), "text"])
MARKER = "executed"
SYSTEM = f"touch {MARKER}".encode()
FEW_NESTED = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(100))

HOSTILE = {
    # Code that would be executed.
    "os.system": (zipped(b"cos\nsystem\n" + text(SYSTEM) + b"\x85R"), "the global 'os.system'"),
    "posix.system, protocol 4": (
        zipped(b"\x8c\x05posix\x8c\x06system\x93" + text(SYSTEM) + b"\x85R"),
        "the global 'posix.system'",
    ),
    "builtins.eval": (
        zipped(b"cbuiltins\neval\n" + text(f"open({MARKER!r}, 'w')".encode()) + b"\x85R"),
        "the global 'builtins.eval'",
    ),
    "os.system in a stream": (
        stream(P2 + b"cos\nsystem\n" + text(SYSTEM) + b"\x85R.", {}),
        "the global 'os.system'",
    ),
    "os.system as the magic number": (
        P2 + b"cos\nsystem\n" + text(SYSTEM) + b"\x85R.",
        "the global 'os.system'",
    ),
    "INST": (zipped(b"(S'" + SYSTEM + b"'\nios\nsystem\n"), "opcode STRING"),
    "INST alone": (zipped(b"(ios\nsystem\n"), "opcode INST"),
    "OBJ": (zipped(b"(ccollections\nOrderedDict\no"), "opcode OBJ"),
    "NEWOBJ": (zipped(b"ccollections\nOrderedDict\n)\x81"), "opcode NEWOBJ"),
    "EXT1": (zipped(b"\x82\x01"), "opcode EXT1"),
    "PERSID": (zipped(b"Pfile\n"), "opcode PERSID"),
    "a dotted name": (
        zipped(b"\x8c\x05torch\x8c\x12serialization.load\x93"),
        "global 'torch.serialization.load'",
    ),
    "a module by a tuple": (zipped(b")\x8c\x04Size\x93"), "not by two strings"),
    "a longer name": (
        zipped(b"ctorch._utils\n_rebuild_tensor_v2x\n"),
        "global 'torch._utils._rebuild_tensor_v2x'",
    ),
    "a huge name": (zipped(b"c" + b"a" * 10**6 + b"\nb\n"), r"global 'aaa.*\.\.\."),
    "a name of two lines": (zipped(b"\x8c\x03o\ns\x8c\x06system\x93"), r"global 'o\\ns.system'"),
    "a call of a string": (zipped(text(b"torch.Size") + b")\x85R"), "calls 'torch.Size'"),
    "a call of a tensor": (zipped(raw_tensor() + b")R"), "calls array"),
    "OrderedDict with arguments": (zipped(b"ccollections\nOrderedDict\n])\x86R"), "calls .*ORDERED_DICT"),
    "attributes of a list": (zipped(b"]}b"), "attributes"),
    "attributes of a tensor": (zipped(raw_tensor() + b"}b"), "attributes"),
    "a numpy type of objects": (zipped(b"cnumpy\ndtype\n" + text(b"O8") + b"\x85R"), "calls .*NUMBER_TYPE"),
    "a big-endian numpy type": (
        zipped(b"cnumpy\ndtype\n" + text(b"f8") + b"\x85RK\x03" + text(b">") + b"\x86b"),
        "accepted: little-endian types",
    ),
    "a numpy type as a storage": (
        zipped(
            b"("
            + text(b"storage")
            + b"cnumpy\ndtype\n"
            + text(b"f4")
            + b"\x85R"
            + text(b"0")
            + text(b"cpu")
            + number(4)
            + b"tQ"
        ),
        "refers to",
    ),
    "a numpy scalar of another size": (
        zipped(b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\n" + text(b"f8") + b"\x85RC\x02ab\x86R"),
        "calls .*NUMBER",
    ),
    "bytes by another codec": (
        zipped(b"c_codecs\nencode\n" + text(b"abc") + text(b"zlib") + b"\x86R"),
        "calls .*ENCODE",
    ),
    # Damaged pickles.
    "an empty stack": (zipped(b""), "one object"),
    "too much on the stack": (zipped(b"NN"), "one object"),
    "pops from nothing": (zipped(b"R"), "takes more from the stack"),
    "a tuple without a mark": (zipped(b"Nt"), "takes more from the stack"),
    "an unknown opcode": (zipped(b"\xff"), "opcode b'.xff' unknown"),
    "an unknown memo": (zipped(b"h\x07"), "no object 7"),
    "a huge memo index": (zipped(b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff"), "no object 4294967294"),
    "a huge string": (zipped(b"\x8d" + b"\xff" * 7 + b"\x7fabc"), "expected .* bytes"),
    "a string of no UTF-8": (zipped(text(b"\xff\xff")), "'utf-8' codec"),
    "a huge int": (zipped(b"\x8b\xff\xff\xff\x7f"), "not enough data"),
    "an int of a million digits": (zipped(b"I" + b"9" * (MIB - 100) + b"\n"), "damaged or longer"),
    "an append to a tuple": (zipped(b")Na"), "appends to a tuple"),
    "an item of a list": (zipped(b"]NNs"), "items of a list"),
    "a dict item without a value": (zipped(b"}(Nu"), "items of a dict"),
    "a tuple as a key": (zipped(b"})Ns"), r"the key \(\)"),
    "a nested tuple as a key": (zipped(b"}" + b")" + b"\x85" * 10**6 + b"Ns"), "the key"),
    "exponential tuples as a key": (zipped(b"Nq\x00" + FEW_NESTED + b"}h\x64Ns"), "the key"),
    "a bool as a key": (zipped(b"}\x88Ns"), "the key True"),
    "a float as a key": (zipped(b"}G" + bytes(8) + b"Ns"), "the key 0.0"),
    "colliding keys": (colliding(), "the key"),
    "many keys": (
        zipped(b"}(" + b"".join(number(i) + b"N" for i in range(60_000)) + b"u"),
        "more than 4096 keys",
    ),
    "bytes after the pickle": (zipped(b"N.N"), "2 bytes follow"),
    # Pickles that fill their MiB.
    "a pickle full of dicts": (repeated(b"}"), "one object"),
    "a pickle full of marks": (repeated(b"("), "one object"),
    "a pickle full of memoized dicts": (repeated(b"}\x94"), "one object"),
    "a pickle full of memo puts": (repeated(b"\x94", before=b"N", after=b"N"), "one object"),
    "a pickle full of ints": (repeated(b"\x8a\xff" + b"\x7f" * 255), "one object"),
    "deep tuples": (repeated(b"\x85", before=b")", after=b"N"), "one object"),
    "deep lists": (zipped(b"N" + b"]" * 400_000 + b"a" * 399_999), "one object"),
    "deep tuples in a tensor": (
        repeated(b"\x85", before=REBUILD_NAME + b"(" + reference() + b")", after=b"))tR"),
        "doesn't fit",
    ),
    "a pickle full of tensors": (
        repeated(
            b"h\x00h\x01R",
            before=REBUILD_NAME
            + b"q\x00("
            + reference(4)
            + b"K\x00"
            + numbers(*[1] * 8)
            + numbers(*[0] * 8)
            + b"\x89}tq\x01",
        ),
        "one object",
    ),
    "a pickle of 2 MiB": (zipped(b"}" * 2 * MIB), "has a data.pkl of .*; accepted: up to 1048576"),
    # Tensors.
    "a size beyond the storage": (zipped(raw_tensor(size=(5,))), "doesn't fit in 4 × float32"),
    "a stride beyond the storage": (zipped(raw_tensor(strides=(2,))), "doesn't fit"),
    "an offset beyond the storage": (zipped(raw_tensor(offset=1)), "doesn't fit"),
    "a negative offset": (zipped(raw_tensor(size=(1,), offset=-1)), "doesn't fit"),
    "a negative stride": (zipped(raw_tensor(strides=(-1,), offset=3)), "doesn't fit"),
    "a negative size": (zipped(raw_tensor(size=(-4,))), "doesn't fit"),
    "a wrapping stride": (zipped(raw_tensor(size=(2**32 + 1,), strides=(2**32,))), "doesn't fit"),
    "a huge stride": (zipped(raw_tensor(size=(1,), strides=(2**100,))), "doesn't fit"),
    "a bool as a size": (zipped(raw_tensor(size=(b"\x88",))), "doesn't fit"),
    "a float as a size": (zipped(raw_tensor(size=(b"G" + struct.pack(">d", 4.0),))), "doesn't fit"),
    "a missing stride": (zipped(raw_tensor(strides=())), "doesn't fit"),
    "nine dimensions": (zipped(raw_tensor(size=[1] * 9, strides=[1] * 9)), "doesn't fit"),
    "a gigantic expanded tensor": (
        zipped(raw_tensor(size=(2**40,), strides=(0,))),
        "more than 67108864 bytes",
    ),
    "many expanded tensors": (
        zipped(b"](" + raw_tensor(size=(2**20,), strides=(0,)) * 20 + b"e"),
        "more than 67108864 bytes",
    ),
    "an empty tensor of huge sizes": (
        zipped(raw_tensor(size=(0, 2**40, 2**40), strides=(0, 0, 0))),
        "too big",
    ),
    "an expanded tensor as a storage": (
        zipped(raw_tensor(size=(1000,), storage=raw_tensor(size=(1000,), strides=(0,)))),
        "doesn't fit",
    ),
    "a list as a storage": (zipped(raw_tensor(storage=b"]")), "calls .*TENSOR"),
    # Storages.
    "a huge count": (zipped(reference(2**40 - 1)), "data/0.* has 16 bytes"),
    "a wrapping count": (zipped(reference(2**62 + 4)), "refers to"),
    "a negative count": (zipped(reference(-4)), "refers to"),
    "a storage count that differs from its record": (zipped(reference(3)), "data/0.* has 16 bytes"),
    "a missing storage": (zipped(reference(key=b"1")), "data/1.* is missing"),
    "a storage outside the data directory": (
        zipped(reference(key=b"../data.pkl")),
        "data/../data.pkl.* is missing",
    ),
    "an int as a key of a storage": (zipped(reference(key=b"K\x00")), "refers to"),
    "a device of another kind": (zipped(reference(device=b"meta")), "refers to .*'meta'"),
    "a reference to a module": (zipped(b"\x8c\x06moduleNN\x87Q"), "refers to .*'module'"),
    "a storage without a type": (zipped(raw_tensor(storage=b"NQ")), "refers to None"),
    "a storage of two types": (
        zipped(reference() + reference(kind=b"torch\nIntStorage") + b"\x86"),
        "both 4 × float32 and 4 × int32",
    ),
    "a storage of two counts": (
        zipped(reference() + reference(3) + b"\x86"),
        "both 4 × float32 and 3 × float32",
    ),
    "a quantized storage": (zipped(reference(kind=b"torch\nQInt8Storage")), "global 'torch.QInt8Storage'"),
    "a view beyond its storage": (
        stream(P2 + reference(more=b"(" + text(b"v") + b"K\x02K\x03t") + b".", {"0": ONE}),
        "the view",
    ),
    # Zip archives.
    "big-endian": (zipped(b"N", byteorder=b"big"), "byte order b'big'"),
    "a compressed record": (archive({"data.pkl": P2 + b"N."}, compression=8), "encrypted or compressed"),
    "a bomb": (bomb, "encrypted or compressed"),
    "overlapping records": (overlapping, "records take"),
    "a flipped bit in a storage": (ZIP.replace(ONE.tobytes(), ONE[::-1].tobytes()), "Bad CRC-32"),
    "an encrypted record": (patched(ZIP, b"PK\1\2", 8, b"\1"), "encrypted or compressed"),
    "a future version": (patched(ZIP, b"PK\1\2", 6, b"\xff"), "zip file version"),
    "a huge record": (
        patched(patched(ZIP, b"PK\1\2", 20, b"\xfe" * 4), b"PK\1\2", 24, b"\xfe" * 4),
        "lies outside",
    ),
    "a record beyond the file": (patched(ZIP, b"PK\1\2", 42, b"\xfe" * 4), "lies outside"),
    "a record without its magic number": (
        patched(zipped(reference()), b"PK\1\2", 42, b"\1"),
        "Bad magic number|Overlapped entries",  # the latter in newer Pythons, such as 3.13
    ),
    "a damaged directory": (patched(ZIP, b"PK\1\2", 0, b"xx"), "Bad magic number"),
    "a million records": (lambda: directory_of(10**6), "directory of 62000000 bytes"),
    "the same record twice": (lambda: directory_of(2), "same name"),
    "a huge directory": (patched(ZIP, b"PK\5\6", 12, b"\xfe" * 4), "directory of 4278124286 bytes"),
    "two roots": (named("a/data.pkl", "b/data/0"), "several roots.*'a', 'b'"),
    "two records of a name": (named("a/data.pkl", "a/data.pkl"), "same name"),
    "an absolute name": (named("/a/data.pkl"), "name '/a/data.pkl'"),
    "a name that leads out": (named("a/data.pkl", "a/../../b"), "name 'a/../../b'"),
    "a backslash": (named("a/data.pkl", "a\\b/c"), "name"),
    "a name without a root": (named("data.pkl"), "name 'data.pkl'"),
    "a name with a null byte": (named("a/data.pkl", "a/nullxb").replace(b"nullx", b"null\0"), "name"),
    "a record name that differs from the directory": (
        patched(named("a/data.pkl"), b"PK\1\2", 46, b"b"),
        "name in directory",
    ),
    "no data.pkl": (archive({"data/0": b""}), "no data.pkl"),
    "numpy's archive": (archive({"weight.npy": b""}), "no data.pkl"),
    "TorchScript": (archive({"data.pkl": P2 + b"N.", "constants.pkl": b"", "code/a.py": b""}), "TorchScript"),
    "a doubled archive": (ZIP + ZIP, "first record begins at"),
    "bytes after an archive": (ZIP + b"\0", "doesn't end with its directory"),
    "a zip's first bytes alone": (b"PK\3\4", "doesn't end with its directory"),
    # Streams.
    "a pickle": (pickle.dumps({"a": 1}, 2), "not from torch.save"),
    "a pickle of an array": (pickle.dumps(ONE, 2), "global 'numpy"),
    "another magic number": (stream(*dumps(1), magic=True), "not from torch.save"),
    "another protocol": (stream(*dumps(1), protocol=1000), "protocol 1000; accepted: 1001"),
    "a big-endian stream": (stream(*dumps(1), little=False), "little-endian"),
    "a missing storage key": (stream(*dumps(whole(ONE, "0"), legacy=True), keys=[]), "but lists"),
    "a storage key twice": (stream(*dumps(whole(ONE, "0"), legacy=True), keys=["0", "0"]), "but lists"),
    "a storage key of another type": (stream(*dumps(whole(ONE, "0"), legacy=True), keys=[0]), "but lists"),
    "a storage count that differs from its stream": (
        STREAM.replace(struct.pack("<q", 4), struct.pack("<q", 5)),
        "has 5 elements",
    ),
    "a huge count in a stream": (stream(P2 + reference(2**38) + b".", {"0": ONE}), "doesn't fit in the file"),
    "huge counts in a stream": (
        stream(P2 + b"".join(reference(2**20, key=b"%d" % i) for i in range(1000)) + b".", {}),
        "doesn't fit in the file",
    ),
    "bytes after a stream": (STREAM + b"\0", "storages end at"),
    "a doubled stream": (STREAM + STREAM, "storages end at"),
    "a stream of 2 MiB of pickles": (stream(P2 + b"}" * 2 * MIB + b".", {}), "longer than 1048576 bytes"),
    # Other files.
    "an empty file": (b"", "is not a PyTorch checkpoint"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a PyTorch checkpoint.*x89PNG"),
    "a text": (b"import torch\n", "is not a PyTorch checkpoint"),
    "a tar": (b"sys_info".ljust(512, b"\0"), "is not a PyTorch checkpoint"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "is not a PyTorch checkpoint"),
}

READER = """
import importlib.util, json, pathlib, resource, signal, sys, time

spec = importlib.util.spec_from_file_location("torch_checkpoint", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "jax" not in sys.modules

pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 200_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in pathlib.Path(sys.argv[2]).read_text().splitlines():
    signal.setitimer(signal.ITIMER_PROF, 10)  # ends the process, in loops of C too
    start = time.process_time()
    try:
        outcome = "loads", str(type(module.load_torch_checkpoint(path)))
    except Exception as error:
        outcome = type(error).__name__, str(error)
    print(json.dumps((*outcome, time.process_time() - start)), flush=True)
"""


def read_in_a_limited_process(directory, files):
    """Results of reading each file in a process limited to 200 MB, which runs in the directory."""
    paths = [directory / f"{i}.pth" for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data() if callable(data) else data)
    (directory / "paths").write_text("\n".join(map(str, paths)))
    command = [sys.executable, "-c", READER, torch_checkpoint.__file__, str(directory / "paths")]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert done.returncode == 0, f"status {done.returncode} at {paths[min(len(lines), len(paths) - 1)]}"
    return list(zip(paths, lines, strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Results of reading each hostile file, and the directory that the reader ran in."""
    directory = tmp_path_factory.mktemp("hostile")
    files = [data for data, _ in HOSTILE.values()]
    return directory, dict(zip(HOSTILE, read_in_a_limited_process(directory, files), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_checkpoints_are_refused_without_running_code(name, outcomes):
    directory, by_name = outcomes
    path, (kind, message, seconds) = by_name[name]
    assert kind == "ValueError", message
    assert message.startswith(f"{path} ")
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    assert re.search(HOSTILE[name][1], message), message
    assert seconds < 5
    assert not (directory / MARKER).exists()


@both
def test_truncated_checkpoints_are_refused(write, tmp_path, load, weights):
    data = write(checkpoint(weights))
    for percent in range(100):
        with pytest.raises(ValueError, match=r"checkpoint\.pth (is|has) "):
            load(data[: len(data) * percent // 100])


def mutated(data, rng):
    """The data with some bytes overwritten, or with a piece cut off, inserted or moved."""
    data, length = bytearray(data), len(data)
    start, stop = sorted(rng.randrange(length) for _ in range(2))
    size = min(rng.choice([1, 2, 5, 20, 100]), length)
    kind = rng.choice(["overwrite", "overwrite", "cut", "delete", "insert", "exchange"])
    if kind == "overwrite":
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(length)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == "cut":
        del data[start:]
    elif kind == "delete":
        del data[start : start + size]
    elif kind == "insert":
        data[start:start] = rng.choice([rng.randbytes(size), data[stop : stop + size]])
    else:
        first, second = data[start : start + size], data[stop : stop + size]
        data[stop : stop + size], data[start : start + size] = first, second
    return bytes(data)


def mutated_checkpoint(rng):
    """A file of either container with a mutation anywhere, or within its pickle alone, under a right CRC."""
    values = np.arange(12, dtype=np.float32)
    saved = checkpoint({f"conv{i}.weight": values[: 2 * i].reshape(2, i) for i in range(1, 6)})
    shared, ints = Storage(values, "shared"), np.arange(3)
    saved += [tensor(shared, (4, 3), (1, 4)), tensor(shared, (5, 2), (0, 1), offset=3), Call(SIZE, ((2, 3),))]
    saved += [Call(REBUILD_PARAMETER, (whole(ints, "ints", device="cuda:0"), True, OrderedDict())), 3, "σ"]
    is_zip, protocol = rng.random() < 0.5, rng.choice([2, 2, 4])
    if rng.random() < 0.5:
        return mutated((as_zip if is_zip else as_stream)(saved, protocol=protocol), rng)
    data, storages = dumps(saved, protocol=protocol, legacy=not is_zip)
    data = mutated(data, rng)
    records = {f"data/{key}": values.tobytes() for key, values in storages.items()}
    return archive({"data.pkl": data, **records}) if is_zip else stream(data, storages)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_checkpoints_with_a_mutation_load_or_are_refused(count, tmp_path):
    """No other exception, no long wait and no large memory, whatever the bytes say."""
    rng = random.Random(count)
    outcomes = read_in_a_limited_process(tmp_path, [mutated_checkpoint(rng) for _ in range(count)])
    for path, (kind, message, seconds) in outcomes:
        assert kind == "loads" or (kind == "ValueError" and message.startswith(f"{path} ")), (path, message)
        assert len(message.splitlines()) == 1
        assert seconds < 2
    reasons = {message.removeprefix(str(path))[:20] for path, (_, message, _) in outcomes}
    assert len(reasons) >= 10
    assert 0.02 < sum(kind == "loads" for _, (kind, _, _) in outcomes) / count < 0.5


def test_only_regular_files_are_read_as_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ValueError, match=f"^{path} is not a regular file$"):
            load_torch_checkpoint(path)


def test_a_checkpoint_path_with_a_newline_is_escaped_in_the_error(tmp_path):
    path = tmp_path / "two\nlines.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^'.*/two\\nlines.pth' is not a PyTorch checkpoint"):
        load_torch_checkpoint(path)
