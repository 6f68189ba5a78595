"""Training over several devices and processes, with Keras' names: meshes, layouts, distributions.

`set_distribution(DataParallel())` before the model is made; the rest of a program stays as it is.
While a distribution is set, functions of the running backend are replaced by those of the module
here that is named after it: docs/decisions/0011-a-distribution-replaces-functions.md.
"""

import os
import re
from collections import UserDict
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module

import numpy as np

from khub import backend, random, tree
from khub.backend.variable import Variable
from khub.distribution.ray import ray_predict
from khub.saving import files
from khub.training.trainer import Trainer

_current = None
_replaced = []  # (owner, name, what was there) of what is replaced now


def engine():
    """Return the module that does the work on this backend."""
    if backend.name == "numpy":
        raise NotImplementedError("khub.distribution needs KHUB_BACKEND=jax, torch or tensorflow.")
    return import_module(f"khub.distribution.{backend.name}")


def list_devices(device_type=None):
    """Return the names ("cpu:0") of all devices, those of other processes too.

    device_type: "cpu", "gpu" or "tpu"; None means the best there is
    """
    return engine().list_devices(device_type)


def get_device_count(device_type=None):
    """Return the number of `list_devices`."""
    return len(list_devices(device_type))


def initialize(job_addresses=None, num_processes=None, process_id=None):
    """Join the other processes; before anything is computed.

    job_addresses: "host:port" of the first process (others after commas are not needed)

    What is not given comes from KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID,
    then from the launcher (torchrun, SLURM, a TPU pod). Whoever waits for a lost process longer
    than KHUB_DISTRIBUTION_TIMEOUT seconds (300) gets an error.
    """
    names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
    outside = [os.environ.get(f"KERAS_DISTRIBUTION_{name}") for name in names]
    given = (job_addresses, num_processes, process_id)
    address, count, index = (o if g is None else g for g, o in zip(given, outside))
    seconds = int(os.environ.get("KHUB_DISTRIBUTION_TIMEOUT", 300))
    address = address and address.split(",")[0]
    engine().initialize(address, count and int(count), index and int(index), seconds)


class DeviceMesh:
    """A grid of devices with a name for each axis; by default of all devices.

    Raises ValueError where shape, names and devices do not fit each other.
    """

    shape = axis_names = devices = None

    def __init__(self, shape, axis_names, devices=None):
        devices = np.array(list_devices() if devices is None else devices)
        if not shape or len(shape) != len(axis_names) or np.prod(shape) != devices.size:
            raise ValueError(
                "DeviceMesh needs a name for each axis and as many devices as its shape holds, "
                f"got the shape {shape}, the names {axis_names} and {devices.size} devices."
            )
        self.shape, self.axis_names = tuple(shape), list(axis_names)
        self.devices = devices.reshape(shape)

    @cached_property
    def backend_mesh(self):
        """The framework's own mesh."""
        return engine().mesh(self)

    def __repr__(self):
        return f"<DeviceMesh shape={self.shape}, axis_names={self.axis_names}>"


class TensorLayout:
    """For each axis of a tensor the mesh axis that it is split over, or None.

    Raises ValueError for a name that the mesh does not have.
    """

    axes = device_mesh = None

    def __init__(self, axes, device_mesh=None):
        self.axes, self.device_mesh = tuple(axes), device_mesh
        unknown = {*axes} - {None, *(device_mesh.axis_names if device_mesh else axes)}
        if unknown:
            raise ValueError(f"{device_mesh} has no axis {unknown} of the layout {axes}.")

    @property
    def backend_layout(self):
        """The framework's own layout."""
        return engine().layout(self)

    def check(self, shape, what):
        """Raise ValueError where a tensor of this shape cannot be laid out so."""
        sizes = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape))
        parts = [sizes.get(axis, 1) for axis in self.axes]
        if len(shape) != len(parts) or any(n % part for n, part in zip(shape, parts)):
            raise ValueError(
                f"{what} of shape {tuple(shape)} cannot be laid out as {self.axes} over {sizes}: "
                "it takes an entry for each axis, and sizes that can be divided."
            )


class LayoutMap(UserDict):
    """Path of a Variable -> `TensorLayout` (or the tuple of its axes); keys are regexes.

    A key equal to the path comes first, then the one key that matches its beginning; None without
    one.  Raises ValueError where several match and for a key that is there already.
    """

    device_mesh = None

    def __init__(self, device_mesh):
        super().__init__()
        self.device_mesh = device_mesh

    def __getitem__(self, path):
        keys = [path] if path in self.data else [key for key in self.data if re.match(key, path)]
        if len(keys) > 1:
            raise ValueError(f"{path!r} is matched by {keys}: make the keys distinct.")
        return self.data[keys[0]] if keys else None

    def __setitem__(self, key, layout):
        if key in self.data:
            raise ValueError(f"LayoutMap has {key!r} already; delete it first.")
        if not isinstance(layout, (tuple, TensorLayout)):
            raise ValueError(f"{key!r} needs a TensorLayout or a tuple of axes, got {layout!r}.")
        mesh = getattr(layout, "device_mesh", None) or self.device_mesh
        self.data[key] = TensorLayout(getattr(layout, "axes", layout), mesh)


def distribution():
    """Return the `Distribution` that is set, None without one."""
    return _current


def set_distribution(value):
    """Lay out from now on as `value` says; None ends it."""
    global _current
    while _replaced:
        setattr(*_replaced.pop())
    _current = value
    if value is None:
        return
    _ = value.device_mesh.backend_mesh
    hooks = [*engine().HOOKS, (Variable, "_store", _store), (Trainer, "_dispatch", _dispatch)]
    if value.num_processes > 1:
        hooks += [(files, "commit", _commit), (files, "is_writer", _is_first)]
        if random._global["seed"] is None:  # all processes draw the same numbers
            random.set_global_seed(engine().agree(random.next_initial_seed()))
    for owner, name, hook in hooks:
        _replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, hook)


_store_alone = Variable._store


def _store(self, value, own=False):
    _store_alone(self, value, own)
    _current.place(self)


def _is_first():
    return engine().processes()[1] == 0


def _commit(place):
    """Put a file in its place: the first process does, when all have what they would write."""
    engine().barrier()
    try:
        if _current.data_shard_id == 0:
            place()
    finally:
        engine().barrier()


def _dispatch(trainer, compiled, argument):
    """Run a step of the trainer; the first one lays out what was made before."""
    if trainer.__dict__.get("_distribution") is not _current:
        trainer.__dict__["_distribution"] = _current
        state = [v for metric in trainer.metrics for v in metric.variables]
        for v in [*trainer.variables, *getattr(trainer.optimizer, "variables", ()), *state]:
            if v.is_materialized:
                _current.place(v)
    return engine().run_step(compiled, argument, _current)


def distribute_batch(batch):
    """Return a batch with its arrays laid out over the devices."""

    def rows(x):
        return engine().rows(x, _current) if getattr(x, "shape", ()) else x

    return batch if _current is None else tree.map_structure(rows, batch)


def distribute_tensor(tensor, layout):
    """Return a tensor laid out as a `TensorLayout` says, inside of a step too."""
    layout.check(tensor.shape, "A tensor")
    return engine().distribute_tensor(tensor, layout.backend_layout)


class Distribution:
    """What `DataParallel` and `ModelParallel` share.

    batch_dim_name: mesh axis over which the rows of a batch are shared out, by default the first;
    auto_shard_dataset: whether every process is given the whole data, of which it computes its
    rows, or rows of its own
    """

    device_mesh = batch_dim_name = auto_shard_dataset = None
    num_processes = num_model_replicas = data_shard_id = None

    def __init__(self, device_mesh, batch_dim_name=None, auto_shard_dataset=True):
        self.device_mesh, self.auto_shard_dataset = device_mesh, auto_shard_dataset
        self.batch_dim_name = batch_dim_name or device_mesh.axis_names[0]
        names = device_mesh.axis_names
        self.num_model_replicas = device_mesh.shape[names.index(self.batch_dim_name)]
        self.num_processes, self.data_shard_id = engine().processes()

    def get_data_layout(self, data_shape):
        """Return the layout of a batch of this shape: split by rows."""
        axes = (self.batch_dim_name, *(None,) * (len(data_shape) - 1))
        return TensorLayout(axes, self.device_mesh)

    def get_variable_layout(self, variable):
        """Return the layout of a Variable."""
        return TensorLayout((None,) * len(variable.shape), self.device_mesh)

    def get_tensor_layout(self, path):
        """Return the layout that a map has for the path of a tensor, None without one."""

    def distribute_dataset(self, dataset):
        """Iterate over the batches of a data set, laid out; `fit` does so by itself."""
        with self.scope():
            yield from map(distribute_batch, dataset)

    distribute_tf_dataset = distribute_dataset

    def place(self, variable):
        """Give the storage of a Variable its layout."""
        layout = variable.layout or self.get_variable_layout(variable)
        layout.check(variable.shape, variable.path)
        variable._storage = engine().lay_out(variable, layout.backend_layout)

    @contextmanager
    def scope(self):
        """Set this distribution inside a `with` block."""
        before = _current
        set_distribution(self)
        try:
            yield self
        finally:
            set_distribution(before)


class DataParallel(Distribution):
    """Every device has all Variables and computes its rows of each batch.

    device_mesh, or devices: their names; by default all devices
    """

    def __init__(self, device_mesh=None, devices=None, auto_shard_dataset=True):
        if device_mesh is None:
            devices = devices or list_devices()
            device_mesh = DeviceMesh((len(devices),), ["batch"], devices)
        super().__init__(device_mesh, None, auto_shard_dataset)


class ModelParallel(Distribution):
    """Variables are split over the devices as a `LayoutMap` says, the others lie on each.

    Rows of a batch are shared out over the mesh axis `batch_dim_name`, on torch over all processes.
    """

    def __init__(self, *, layout_map=None, batch_dim_name=None, auto_shard_dataset=True, **kwargs):
        if layout_map is None or kwargs:
            raise ValueError(f"ModelParallel takes a layout_map, got {kwargs or None}.")
        self.layout_map = layout_map
        super().__init__(layout_map.device_mesh, batch_dim_name, auto_shard_dataset)

    def get_variable_layout(self, variable):
        """Return the map's layout of a Variable; an optimizer's has that of the one it is for."""
        source = getattr(variable, "like", variable)
        found = self.layout_map[source.path] if source.shape == variable.shape else None
        return found or super().get_variable_layout(variable)

    def get_tensor_layout(self, path):
        """Return the layout that the map has for the path of a tensor, None without one."""
        return self.layout_map[path]
