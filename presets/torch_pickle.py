"""PyTorch's `.bin`, `.pt` and `.pth` files, read without torch and without unpickling.

A file is a zip: `data.pkl` describes the tensors, `data/<key>` hold their bytes. The pickle is
parsed into its opcodes (which runs nothing), and only those that a state dict is made of are
followed: dicts, lists, tuples, numbers, strings, and tensors as views of storages. Objects of any
other class, as in files of whole modules, become records that only keep their attributes: no class
is looked up, nothing is called. Those of a module (`_parameters`, ...) are a state dict too.
"""

import math
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from .tensors import Pages, Tensor, WeightsError

PICKLE_LIMIT = 100_000_000  # bytes of data.pkl
MODULES_LIMIT, DEPTH_LIMIT = 100_000, 100  # modules in a module: of a few bytes could be any number
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
STORAGES = {f"torch {name}": np.dtype(dtype) for name, dtype in STORAGES.items()}
TENSOR, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
ORDERED = "collections OrderedDict"
SETS = ("builtins set", "__builtin__ set")
INSIDE = ("state_dict", "model", "module", "model_state_dict", "ema")  # where scripts put it
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
)
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extra field


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(eq=False, repr=False)
class _Record:
    """What stands for an object of a class that is not looked up."""

    name: str
    state: dict = field(default_factory=dict)

    def part(self, name):
        """An attribute that is a dict, else an empty one."""
        found = self.state.get(name)
        return found if _is_dict(found) else {}

    @property
    def is_module(self):
        return _is_dict(self.state.get("_parameters")) and _is_dict(self.state.get("_modules"))


@dataclass(frozen=True)
class _View:
    """A tensor: where in which storage (key, dtype, count) it lies."""

    storage: tuple
    offset: int
    shape: tuple
    strides: tuple


class TorchFile:
    """The tensors of one file, as `TensorFile` gives those of a safetensors file.

    Raises WeightsError for anything but a state dict: nothing in the file can run.
    """

    def __init__(self, path):
        self.path, self.metadata = Path(path), {}
        try:
            content = self._open()
        except WeightsError:
            raise
        except DAMAGED as error:
            raise WeightsError(
                f"{path} is no PyTorch checkpoint of version 1.6 or later, or is damaged: {error}."
            ) from error
        found = _Machine(self.path).run(content)
        inside = [found.get(key) for key in INSIDE] if _is_dict(found) else []
        found = next((x for x in inside if _is_dict(x) or _is_module(x)), found)
        found = self._state(found) if _is_module(found) else found
        if not _is_dict(found) or not found:
            raise WeightsError(f"{path} holds no state dict (names -> tensors).")
        for value in found.values():
            if isinstance(value, (_Record, _Global)):
                raise WeightsError(
                    f"{path} names {value.name.replace(' ', '.')}, which no state dict needs: "
                    "refused. Ask for a safetensors file."
                )
        others = [
            str(k) for k, v in found.items() if not isinstance(v, _View) or type(k) is not str
        ]
        if others:
            raise WeightsError(f"{path}: these are no named tensors: {', '.join(others[:10])}.")
        with open(path, "rb") as file:
            self._pages = Pages(file)
        self._views = {name: (view, self._place(name, view)) for name, view in found.items()}

    def _state(self, module):
        """Return name -> tensor of a module and those in it, as its state_dict() has them."""
        found, waiting, count = {}, [("", module, 0)], 0
        while waiting:
            prefix, module, depth = waiting.pop()
            count += 1
            if count > MODULES_LIMIT or depth > DEPTH_LIMIT:
                raise WeightsError(f"{self.path}: its modules are too many or contain themselves.")
            hidden = module.state.get("_non_persistent_buffers_set")
            hidden = hidden if type(hidden) is list else []
            own = module.part("_parameters") | module.part("_buffers")
            for name, value in own.items():
                if value is not None and name not in hidden:
                    found[f"{prefix}{name}"] = value
            inner = module.part("_modules").items()
            for name, value in reversed(inner):
                if _is_module(value):
                    waiting.append((f"{prefix}{name}.", value, depth + 1))
        return found

    def _open(self):
        """Return the content of data.pkl."""
        with zipfile.ZipFile(self.path) as archive:
            self._members = {m.filename: m for m in archive.infolist()}
            root = next((n for n in self._members if n.endswith("/data.pkl")), None)
            if root is None:
                raise WeightsError(f"{self.path} has no data.pkl: it is no PyTorch checkpoint.")
            if self._members[root].file_size > PICKLE_LIMIT:
                raise WeightsError(f"{self.path}: its data.pkl is over {PICKLE_LIMIT:,} bytes.")
            self._root = root.removesuffix("data.pkl")
            order = self._root + "byteorder"
            if order in self._members and archive.read(order).strip() == b"big":
                raise WeightsError(f"{self.path} is big-endian, which is not supported.")
            return archive.read(root)

    def _place(self, name, view):
        """Return where a tensor's storage begins in the file, checked against its size."""
        key, dtype, count = view.storage
        member = self._members.get(f"{self._root}data/{key}")
        if member is None or member.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(f"{self.path}: tensor {name!r} lacks its plain data/{key}.")
        last = sum((n - 1) * step for n, step in zip(view.shape, view.strides))
        inside = 0 in view.shape or 0 <= view.offset <= view.offset + last < count
        if not inside or count * dtype.itemsize > member.file_size:
            raise WeightsError(
                f"{self.path}: tensor {name!r} {view.shape} lies outside its storage of {count} "
                "numbers: it is damaged; download it again."
            )
        if member.header_offset < 0:
            raise WeightsError(f"{self.path} is damaged; download it again.")
        header = self._pages.bytes[member.header_offset : member.header_offset + LOCAL_HEADER.size]
        if len(header) < LOCAL_HEADER.size:
            raise WeightsError(f"{self.path} is truncated; download it again.")
        start = member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))
        if start + count * dtype.itemsize > len(self._pages.bytes):
            raise WeightsError(f"{self.path} is truncated; download it again.")
        return start

    def __iter__(self):
        return iter(self._views)

    def tensor(self, name):
        """Return the named `Tensor`; its `read()` gives an array of the caller's own."""
        view, start = self._views[name]
        _, dtype, count = view.storage

        def read():
            if 0 in view.shape:
                return np.zeros(view.shape, dtype)
            array = self._pages.array(dtype, count, start)
            steps = [step * dtype.itemsize for step in view.strides]
            return np.lib.stride_tricks.as_strided(array[view.offset :], view.shape, steps)

        return Tensor(view.shape, dtype, read)


def _is_dict(value):
    return type(value) is dict


def _is_module(value):
    return isinstance(value, _Record) and value.is_module


def _is_sizes(value):
    return type(value) is tuple and all(type(n) is int and n >= 0 for n in value)


class _Machine:
    """Follows the opcodes of a pickle that make data, tensors and records, and no others."""

    def __init__(self, path):
        self.path, self.stack, self.marks, self.memo = path, [], [], {}

    def run(self, content):
        """Return the object that a pickle describes."""
        try:
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{self.path}: its data.pkl is damaged: {error}.") from error
        raise WeightsError(f"{self.path}: its data.pkl is truncated.")

    def step(self, name, argument):
        if name in VALUES:
            self.stack.append(VALUES[name](argument))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                member, module = self.stack.pop(), self.stack.pop()
                argument = f"{module} {member}"
            self.stack.append(_Global(argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "TUPLE":
            self.stack.append(tuple(self.marked()))
        elif name in SHORT_TUPLES:
            count = SHORT_TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name == "SETITEM":
            self.update([*self.take(2)])
        elif name == "SETITEMS":
            self.update(self.marked())
        elif name == "APPEND":
            self.extend([*self.take(1)])
        elif name in ("APPENDS", "ADDITEMS"):
            self.extend(self.marked())
        elif name == "BINPERSID":
            self.stack.append(self.storage(self.stack.pop()))
        elif name == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(self.made(function, arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            cls = self.take(2 if name == "NEWOBJ" else 3)[0]
            self.stack.append(_Record(getattr(cls, "name", "?")))
        elif name == "BUILD":  # attributes of an OrderedDict are PyTorch's versions of modules
            state = self.stack.pop()
            if isinstance(self.stack[-1], _Record):
                self.stack[-1].state = state if _is_dict(state) else {}
            elif not _is_dict(self.stack[-1]):
                raise WeightsError(f"{self.path} sets attributes of an object: refused.")
        else:
            raise WeightsError(f"{self.path}: its pickle uses {name}, which no state dict needs.")

    def take(self, count):
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def marked(self):
        return (
            self.take(len(self.stack) - mark)
            if (mark := self.marks.pop()) < len(self.stack)
            else []
        )

    def update(self, items):
        target = self.stack[-1]
        if isinstance(target, _Record):
            return
        if not _is_dict(target):
            raise WeightsError(f"{self.path} sets items of something that is no dict: refused.")
        target.update(zip(items[::2], items[1::2], strict=True))

    def extend(self, items):
        if isinstance(self.stack[-1], _Record):
            return
        if type(self.stack[-1]) is not list:
            raise WeightsError(f"{self.path} appends to something that is no list: refused.")
        self.stack[-1].extend(items)

    def storage(self, found):
        """Return (key, dtype, count) of a persistent id: ("storage", type, key, device, count)."""
        kind, storage, key, _, count = found
        name = getattr(storage, "name", "?")
        if kind != "storage" or name not in STORAGES:
            raise WeightsError(
                f"{self.path} names {name.replace(' ', '.')}, an unknown kind of storage."
            )
        if type(key) is not str or type(count) is not int or count < 0:
            raise WeightsError(f"{self.path} has a storage that says {found!r}.")
        return key, STORAGES[name], count

    def made(self, function, arguments):
        name = function.name
        if name == ORDERED and not arguments:
            return {}
        if name in SETS:
            return list(*arguments)
        if name not in (ORDERED, PARAMETER, TENSOR):
            return _Record(name)
        if name == PARAMETER and isinstance(arguments[0], _View):
            return arguments[0]
        if name == TENSOR:
            storage, offset, shape, strides = arguments[:4]
            sizes = _is_sizes(shape) and _is_sizes(strides) and len(shape) == len(strides)
            if sizes and type(offset) is int and type(storage) is tuple and math.prod(shape) >= 0:
                return _View(storage, offset, shape, strides)
        raise WeightsError(
            f"{self.path} calls {name.replace(' ', '.')} in an unknown way: refused."
        )


VALUES = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_SET": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    **dict.fromkeys(
        (
            *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "BINFLOAT"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        ),
        lambda argument: argument,
    ),
}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
