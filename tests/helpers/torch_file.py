"""Writes torch's zip format without torch, for the tests of its reader."""

import io
import pickle
import zipfile

import numpy as np

NAMES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage", np.dtype(np.int64): "LongStorage"}


class _Global:
    """Is pickled as the global of this name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


def call(module: str, name: str, *arguments):
    """An object whose unpickling calls module.name(*arguments)."""
    return _Call(_Global(module, name), arguments)


class _Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def save_global_(self, thing):
        self.write(pickle.GLOBAL + f"{thing.module}\n{thing.name}\n".encode())

    def save_call(self, thing):
        self.save(thing.function)
        self.save(thing.arguments)
        self.write(pickle.REDUCE)

    def persistent_id(self, thing):
        if not isinstance(thing, _Storage):
            return None
        return ("storage", _Global("torch", NAMES[thing.array.dtype]), thing.key, "cpu", thing.array.size)

    dispatch[_Global] = save_global_
    dispatch[_Call] = save_call


def tensor(key, flat, shape, strides=None, start=0):
    """A slice of the storage `flat`."""
    strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return call("torch._utils", "_rebuild_tensor_v2", _Storage(key, flat), start, tuple(shape), tuple(strides), False, {})


def save(path, content, storages):
    """content: the pickled object; storages: {key: flat array}."""
    stream = io.BytesIO()
    _Pickler(stream, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for key, flat in storages.items():
            archive.writestr(f"archive/data/{key}", flat.tobytes())
    return path


def state_dict(path, arrays):
    """A file with these arrays, each in its own storage."""
    flat = {str(i): np.ascontiguousarray(a).reshape(-1) for i, a in enumerate(arrays.values())}
    content = {name: tensor(key, flat[key], a.shape) for key, (name, a) in zip(flat, arrays.items(), strict=True)}
    return save(path, content, flat)
