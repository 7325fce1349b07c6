"""Reader of `torch.save` files that needs no PyTorch and executes nothing in the file.

A pickle is a program, and Python's `pickle` calls whatever the program names. Here `pickletools` only splits
it into opcodes, and a stack machine that knows nothing except plain data and tensors interprets them.
"""

import enum
import io
import math
import os
import pickletools
import re
import reprlib
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_MIB = 2**20
_MAX_PICKLE = _MAX_DIRECTORY = _MIB
"""Largest size of a file's pickles, and of a zip's directory; official networks need up to 0.3 MiB each."""
_MAX_KEYS = 4096
"""Largest number of keys in a dict: with hashes chosen to collide, the time grows with its square."""
_MAX_DIMENSIONS = 8
_MAX_NUMBER = 2**40
"""Largest size, stride, offset and count: numpy's own arithmetic would wrap around at 2⁶³."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of a stream."""


_Function = enum.Enum("_Function", "ORDERED_DICT SIZE TENSOR PARAMETER NUMBER_TYPE NUMBER ENCODE")

_GLOBALS: dict[str, _Function | np.dtype] = {
    "collections.OrderedDict": _Function.ORDERED_DICT,
    "torch.Size": _Function.SIZE,
    "torch._utils._rebuild_tensor_v2": _Function.TENSOR,
    "torch._utils._rebuild_parameter": _Function.PARAMETER,
    "numpy.dtype": _Function.NUMBER_TYPE,
    "numpy.core.multiarray.scalar": _Function.NUMBER,
    "numpy._core.multiarray.scalar": _Function.NUMBER,
    "_codecs.encode": _Function.ENCODE,
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
"""All globals that a pickle may name; the same storages of `torch.cuda` are added below."""
_GLOBALS |= {
    name.replace("torch.", "torch.cuda."): meaning
    for name, meaning in _GLOBALS.items()
    if isinstance(meaning, np.dtype)
}


class _NumberType(NamedTuple):
    """The type of a numpy scalar, which isn't a type of a storage."""

    dtype: np.dtype


_NUMBER_TYPES = frozenset(("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"))

_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def load_torch_checkpoint(path: str | os.PathLike) -> Any:
    """Read a file of `torch.save` and return its object, with numpy arrays for tensors.

    Nothing in the file is executed: a file that names anything except tensors, their storages, `torch.Size`
    and `OrderedDict` is refused. Both containers are read, the zip archive of PyTorch 1.6 and later and the
    earlier stream of pickles, in about as much memory as the file's size.

    Args:
      path: the file. The official code saves a list of the model's state dict, the optimizer's, and so on.

    Returns:
      The saved object, made of None, bool, int, float, str, bytes, tuple, list, dict and arrays.
      `OrderedDict` becomes dict, `torch.Size` becomes tuple, a parameter becomes its tensor, and a numpy
      scalar becomes a bool, an int or a float. The arrays are writable, keep the tensors' strides and use
      only the memory of the file's storages: tensors that shared a storage share its memory, and so do the
      elements of an expanded tensor.

    Raises:
      OSError: if the file doesn't exist or can't be read.
      ValueError: if it isn't a whole checkpoint of plain data and tensors; the message is one line that
        begins with the path.

    Reference:
      PyTorch, torch/serialization.py: `save` and `load`, in the form of 1.6 and later and in the legacy form.
    """
    path = os.path.expanduser(path)
    try:
        # Checked before the file is opened: opening a FIFO would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is not a regular file")
        with open(path, "rb") as file:
            return _load(file)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, struct.error) as error:
        reason = f"is a damaged zip archive: {str(error) or 'it ends early'}"
    except IndexError:
        reason = "is damaged: its pickle takes more from the stack than it put there"
    except (ValueError, OverflowError, MemoryError) as error:
        reason = str(error) or type(error).__name__
    name = os.fsdecode(path)
    name = name if name.isprintable() else repr(name)
    raise ValueError(f"{name} {' '.join(reason[:1000].split())[:400]}")


def _load(file: BinaryIO) -> Any:
    file_size = os.fstat(file.fileno()).st_size
    start = file.read(4)
    if start == b"PK\3\4":
        return _load_zip(file, file_size)
    if start[:1] == b"\x80":
        return _load_stream(file, file_size)
    raise ValueError(
        f"is not a PyTorch checkpoint: it begins with {start!r}; accepted: b'PK\\x03\\x04' or b'\\x80'"
    )


def _load_zip(file: BinaryIO, file_size: int) -> Any:
    _check_directory(file, file_size)
    with zipfile.ZipFile(file) as archive:
        records = _records(archive.infolist(), file_size)

        def read(name: str) -> bytes:
            if (size := records[name].file_size) > _MAX_PICKLE:
                raise ValueError(f"has a {name} of {size} bytes; accepted: up to {_MAX_PICKLE}")
            return archive.read(records[name])

        def new_storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            size = records[name].file_size if (name := f"data/{key}") in records else None
            if size != count * dtype.itemsize:
                found = "is missing" if size is None else f"has {size} bytes"
                raise ValueError(f"is damaged: its record {_shown(name)}, of {count} × {dtype}, {found}")
            storage = np.empty(count, dtype)
            with archive.open(records[name]) as source:
                _fill(storage, source)
            return storage

        if "byteorder" in records and (order := read("byteorder")) != b"little":
            raise ValueError(f"has the byte order {_shown(order)}; accepted: b'little'")
        pickle = io.BytesIO(read("data.pkl"))
        value = _Machine(new_storage, file_size).run(pickle)
        if rest := len(pickle.read()):
            raise ValueError(f"is damaged: {rest} bytes follow the end of its pickle")
        return value


def _check_directory(file: BinaryIO, file_size: int) -> None:
    """Refuse an archive with a long directory, before zipfile reads it, or with no directory at its end."""
    file.seek(max(0, file_size - 98))
    end = file.read(98).rjust(98, b"\0")
    zip64, locator, end = end[:56], end[56:76], end[76:]
    size = int.from_bytes(end[12:16], "little")
    is_whole = end[:4] == b"PK\5\6" and end[20:] == b"\0\0"
    if locator[:4] == b"PK\6\7":
        size = int.from_bytes(zip64[40:48], "little")
        # zipfile reads the record right before its locator or, in later versions, where the locator points.
        is_whole &= zip64[:4] == b"PK\6\6" and int.from_bytes(locator[8:16], "little") == file_size - 98
    if not is_whole:
        raise ValueError("is a truncated or damaged zip archive: it doesn't end with its directory")
    if size > _MAX_DIRECTORY:
        raise ValueError(
            f"is a zip archive with a directory of {size} bytes; accepted: up to {_MAX_DIRECTORY}"
        )


def _records(entries: list[zipfile.ZipInfo], file_size: int) -> dict[str, zipfile.ZipInfo]:
    """Check the records of a checkpoint's archive, and return them by their names below its root."""
    records, roots = {}, set()
    for entry in entries:
        name = entry.orig_filename
        root, *path = name.split("/")
        if entry.flag_bits & 0x1 or entry.compress_type or entry.compress_size != entry.file_size:
            raise ValueError(
                f"has the encrypted or compressed record {_shown(name)}; accepted: records stored as they are"
            )
        if entry.filename != name or not path or {"", ".", ".."} & {root, *path} or "\\" in name:
            raise ValueError(
                f"has a record with the name {_shown(name)}; accepted: names like 'root/data.pkl'"
            )
        if not 0 <= entry.header_offset < file_size - entry.file_size:
            raise ValueError(f"is a damaged zip archive: its record {_shown(name)} lies outside of the file")
        roots.add(root)
        records["/".join(path)] = entry
    if len(roots) > 1 or len(records) < len(entries):
        raise ValueError(f"has several records of the same name, or several roots: {_shown(sorted(roots))}")
    if "constants.pkl" in records:
        raise ValueError("is a TorchScript archive; accepted: files of torch.save")
    if "data.pkl" not in records:
        raise ValueError(
            f"is not a PyTorch checkpoint: it has no data.pkl among the records {_shown(list(records))}"
        )
    if first := min(entry.header_offset for entry in entries):
        raise ValueError(f"is a damaged zip archive: its first record begins at {first}, not at 0")
    if (total := sum(entry.file_size for entry in entries)) > file_size:
        raise ValueError(f"is a damaged zip archive: its records take {total} of {file_size} bytes")
    return records


def _load_stream(file: BinaryIO, file_size: int) -> Any:
    bytes_left = file_size

    def new_storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        nonlocal bytes_left
        bytes_left -= count * dtype.itemsize
        if bytes_left < 0:
            raise ValueError(
                f"is truncated: its storage {_shown(key)} of {count} × {dtype} doesn't fit in the file"
            )
        return np.empty(count, dtype)

    file.seek(0)
    pickles = io.BytesIO(file.read(_MAX_PICKLE))
    machine = _Machine(new_storage, file_size)
    magic = machine.run(pickles)
    if type(magic) is not int or magic != _MAGIC:
        raise ValueError(f"is a pickle, but not from torch.save: it doesn't begin with {_MAGIC:#x}")
    protocol, system, value, keys = [machine.run(pickles) for _ in range(4)]
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise ValueError(f"has the protocol {_shown(protocol)}; accepted: {_PROTOCOL}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"was not written on a little-endian machine: {_shown(system)}")
    storages = machine.storages
    is_listed = (
        type(keys) is list and all(type(key) is str for key in keys) and sorted(keys) == sorted(storages)
    )
    if not is_listed:
        raise ValueError(f"is damaged: it has storages {_shown(list(storages))}, but lists {_shown(keys)}")

    position = file.seek(pickles.tell())
    end = position + sum(8 + storages[key].nbytes for key in keys)
    if end != file_size:
        raise ValueError(f"is truncated or damaged: it has {file_size} bytes, but its storages end at {end}")
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        if count != storages[key].size:
            raise ValueError(
                f"is damaged: storage {_shown(key)} has {count} elements, not {storages[key].size}"
            )
        _fill(storages[key], file)
    return value


def _fill(array: np.ndarray, source: Any) -> None:
    """Read the array's bytes in pieces, because `readinto` of a zip's record copies the piece it is given."""
    data = memoryview(array.view(np.uint8))
    for start in range(0, len(data), _MIB):
        piece = data[start : start + _MIB]
        if source.readinto(piece) != len(piece):
            raise ValueError("is truncated: it ends within a storage")


class _Machine:
    """Stack machine that runs pickles of plain data and tensors.

    Args:
      new_storage: a function that creates the storage of a dtype, a key and a count; called once per key.
      file_size: the file's size in bytes, which limits the memory that copies of all tensors would take.
    """

    def __init__(self, new_storage: Callable[[np.dtype, str, int], np.ndarray], file_size: int):
        self.storages: dict[str, np.ndarray] = {}
        self._new_storage = new_storage
        self._bytes_left = self._max_bytes = max(64 * _MIB, 2 * file_size)

    def run(self, pickle: io.BytesIO) -> Any:
        """Return the object of the next pickle."""
        stack, outer_stacks, memo = [], [], {}
        for name, argument in _opcodes(pickle):
            match name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    if argument not in memo:
                        raise ValueError(f"is damaged: its pickle has no object {argument} to refer to")
                    stack.append(memo[argument])
                case _ if name in _LITERALS:
                    stack.append(argument)
                case _ if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    outer_stacks.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = stack, outer_stacks.pop()
                    stack.append(tuple(items))
                case "TUPLE1":
                    stack.append((stack.pop(),))
                case "TUPLE2":
                    second, first = stack.pop(), stack.pop()
                    stack.append((first, second))
                case "TUPLE3":
                    third, second, first = stack.pop(), stack.pop(), stack.pop()
                    stack.append((first, second, third))
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "APPENDS":
                    items, stack = stack, outer_stacks.pop()
                    _extend(stack[-1], items)
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    _update(stack[-1], [key, item])
                case "SETITEMS":
                    items, stack = stack, outer_stacks.pop()
                    _update(stack[-1], items)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(self._call(function, arguments))
                case "BUILD":
                    attributes = stack.pop()
                    _build(stack[-1], attributes)
                case "GLOBAL":
                    stack.append(_meaning(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    attribute, module = stack.pop(), stack.pop()
                    if type(module) is not str or type(attribute) is not str:
                        raise ValueError(
                            f"names a global by {_shown((module, attribute))}, not by two strings"
                        )
                    stack.append(_meaning(f"{module}.{attribute}"))
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    if outer_stacks or len(stack) != 1:
                        raise ValueError("is damaged: its pickle doesn't end with one object")
                    return stack[0]
                case _:
                    raise ValueError(f"has the pickle opcode {name}, which torch.save doesn't write")

    def _storage(self, reference: Any) -> np.ndarray:
        match reference:
            case (str() as kind, np.dtype() as dtype, str() as key, str() as device, count, *view) if (
                kind == "storage" and re.fullmatch("cpu|cuda:[0-9]{1,4}", device) and _is_number(count)
            ):
                pass
            case _:
                accepted = "('storage', type, key, 'cpu' or 'cuda:0', count)"
                raise ValueError(f"refers to {_shown(reference)}; accepted: {accepted}")
        if key not in self.storages:
            self.storages[key] = self._new_storage(dtype, key, count)
        storage = self.storages[key]
        if storage.dtype != dtype or storage.size != count:
            both = f"{storage.size} × {storage.dtype} and {count} × {dtype}"
            raise ValueError(f"is damaged: its storage {_shown(key)} is both {both}")
        match view:
            case [] | [None]:
                return storage
            case [(_, start, size)] if _is_number(start) and _is_number(size) and start + size <= count:
                return storage[start : start + size]
        raise ValueError(f"is damaged: it has the view {_shown(view)} of a storage of {count} elements")

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, _Function):
            match function, arguments:
                case _Function.ORDERED_DICT, ():
                    return {}
                case _Function.SIZE, (tuple() as size,):
                    return size
                case _Function.PARAMETER, (np.ndarray() as tensor, _, _):
                    return tensor
                case _Function.NUMBER_TYPE, (str() as name, *_) if name in _NUMBER_TYPES:
                    return _NumberType(np.dtype(f"<{name}"))
                case _Function.NUMBER, (_NumberType(dtype), bytes() as data) if len(data) == dtype.itemsize:
                    return np.frombuffer(data, dtype)[0].item()
                case _Function.ENCODE, (str() as text, "latin1"):
                    return text.encode("latin1")
                case _Function.TENSOR, (
                    np.ndarray() as storage,
                    offset,
                    tuple() as size,
                    tuple() as strides,
                    *_,
                ):
                    return self._tensor(storage, offset, size, strides)
        raise ValueError(f"calls {_shown(function)} with {_shown(arguments)}, which torch.save doesn't write")

    def _tensor(self, storage: np.ndarray, offset: Any, size: tuple, strides: tuple) -> np.ndarray:
        is_sound = (
            len(size) == len(strides) <= _MAX_DIMENSIONS
            and all(map(_is_number, (offset, *size, *strides)))
            and storage.flags.c_contiguous
        )
        last = (
            offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True)) if is_sound else 0
        )
        if not is_sound or (0 not in size and last >= storage.size):
            shape = f"size {_shown(size)}, strides {_shown(strides)} and offset {_shown(offset)}"
            raise ValueError(
                f"is damaged: a tensor of {shape} doesn't fit in {storage.size} × {storage.dtype}"
            )
        itemsize = storage.itemsize
        self._bytes_left -= math.prod(size) * itemsize
        if self._bytes_left < 0:
            raise ValueError(
                f"has more than {self._max_bytes} bytes of tensors, among them one of size {_shown(size)}"
            )
        if 0 in size:
            return np.empty(size, storage.dtype)
        byte_strides = [stride * itemsize for stride in strides]
        return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * itemsize, byte_strides)


def _opcodes(pickle: io.BytesIO) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(
            f"has a pickle that is damaged or longer than {_MAX_PICKLE} bytes: {error}"
        ) from None


def _meaning(name: str) -> _Function | np.dtype:
    if name not in _GLOBALS:
        raise ValueError(f"names the global {_shown(name)}; accepted: {', '.join(_GLOBALS)}")
    return _GLOBALS[name]


def _build(target: Any, attributes: Any) -> None:
    """Check the attributes of an `OrderedDict`, which are dropped, or the byte order of a numpy type."""
    match target, attributes:
        case (dict(), _) | (_NumberType(), (_, "<" | "|", *_)):
            return
        case _NumberType(), _:
            raise ValueError(f"has a number of the type {_shown(attributes)}; accepted: little-endian types")
    raise ValueError("has attributes for an object that isn't an OrderedDict")


def _extend(target: Any, items: list) -> None:
    if type(target) is not list:
        raise ValueError(f"is damaged: it appends to a {type(target).__name__}")
    target.extend(items)


def _update(target: Any, items: list) -> None:
    if type(target) is not dict or len(items) % 2:
        raise ValueError(f"is damaged: it sets items of a {type(target).__name__}")
    for key, item in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and key.bit_length() < 64):
            raise ValueError(
                f"has the key {_shown(key)} in a dict; accepted: strings and integers below 2**63"
            )
        target[key] = item
        if len(target) > _MAX_KEYS:
            raise ValueError(f"has a dict of more than {_MAX_KEYS} keys")


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER


def _shown(value: Any) -> str:
    """A short form of a value from a file, however long or deep the value is."""
    return _repr.repr(value)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
