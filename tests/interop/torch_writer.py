"""Files as torch writes them, made by a pickler and stand-ins for torch's classes."""

import dataclasses
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import ml_dtypes
import numpy as np

TORCH = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.cuda")}
STORAGES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


def stand_in(module, name):
    value = type(name, (), {"__module__": module})
    setattr(TORCH[module], name, value)
    return value


REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = stand_in("torch._utils", "_rebuild_parameter")
SIZE = stand_in("torch", "Size")
for kind in STORAGES:
    stand_in("torch", f"{kind}Storage")
    stand_in("torch.cuda", f"{kind}Storage")


class Storage:
    def __init__(self, values, key, device="cpu", view=None):
        kind = next(kind for kind, dtype in STORAGES.items() if values.dtype == dtype)
        self.values, self.key, self.device, self.view = values, key, device, view
        self.type = getattr(TORCH["torch" if device == "cpu" else "torch.cuda"], f"{kind}Storage")


@dataclasses.dataclass
class Call:
    """Pickles as the call of a function."""

    function: object
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments


def tensor(storage, size, strides, offset=0):
    return Call(REBUILD, (storage, offset, tuple(size), tuple(strides), False, OrderedDict()))


def whole(values, key, **kwargs):
    strides = [stride // values.itemsize for stride in values.strides]
    return tensor(Storage(values.reshape(-1), key, **kwargs), values.shape, strides)


def dumps(value, *, protocol=2, legacy=False):
    """The pickle of a value, and its storages by key."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            storages[obj.key] = obj.values
            return (
                "storage",
                obj.type,
                obj.key,
                obj.device,
                obj.values.size,
                *([obj.view] if legacy else []),
            )

    file = io.BytesIO()
    with mock.patch.dict(sys.modules, TORCH):
        Pickler(file, protocol).dump(value)
    return file.getvalue(), storages


def archive(records, *, root="archive", compression=zipfile.ZIP_STORED):
    """A zip of records by name below the root."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, data in records.items():
            target.writestr(f"{root}/{name}", data)
    return file.getvalue()


def as_zip(value, **kwargs):
    data, storages = dumps(value, **kwargs)
    records = {f"data/{key}": values.tobytes() for key, values in storages.items()}
    return archive({"data.pkl": data, "byteorder": "little", **records, "version": "3\n"})


def stream(data, storages, *, magic=0x1950A86A20F9469CFC6C, protocol=1001, little=True, keys=None, end=b""):
    system = {
        "protocol_version": 1001,
        "little_endian": little,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    keys = list(storages) if keys is None else keys
    first, last = [pickle.dumps(value, 2) for value in (magic, protocol, system)], pickle.dumps(keys, 2)
    raw = [struct.pack("<q", values.size) + values.tobytes() for values in storages.values()]
    return b"".join([*first, data, last, *raw, end])


def as_stream(value, **kwargs):
    return stream(*dumps(value, legacy=True, **kwargs))
