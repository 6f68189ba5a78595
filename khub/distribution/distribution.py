"""What a distribution changes: where Variables lie, and which rows of a batch a device computes.

While one is set, a few functions of the running backend are replaced by those of the module named
after it (`HOOKS`), a new storage is laid out, and steps of the trainer go through the engine.
docs/decisions/0011-a-distribution-replaces-functions.md says why.
"""

import os
from contextlib import contextmanager

from khub import random, tree
from khub.backend import active
from khub.backend.variable import Variable
from khub.distribution.layouts import DeviceMesh, TensorLayout, engine
from khub.saving import files
from khub.training.trainer import Trainer

_current = None
_replaced = []  # (owner, name, value before) of what is replaced now


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

    job_addresses: "host:port" of the first process (more after commas are ignored)

    What is not given comes from KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID,
    then from the launcher (torchrun, SLURM, a TPU pod). A process that waits for a lost one longer
    than KHUB_DISTRIBUTION_TIMEOUT seconds (300) raises an error.
    """
    given = {"JOB_ADDRESSES": job_addresses, "NUM_PROCESSES": num_processes}
    given["PROCESS_ID"] = process_id
    values = [
        os.environ.get(f"KERAS_DISTRIBUTION_{name}") if value is None else value
        for name, value in given.items()
    ]
    address = values[0].split(",")[0] if values[0] else None
    count, index = (None if value is None else int(value) for value in values[1:])
    engine().initialize(address, count, index, int(os.environ.get("KHUB_DISTRIBUTION_TIMEOUT", 300)))


def distribution():
    """Return the `Distribution` that is set, None without one."""
    return _current


def set_distribution(value):
    """Lay out from now on as `value` says; None ends it.  Set it before the model is made."""
    global _current
    if value is not None and not isinstance(value, Distribution):
        raise ValueError(f"Expected a Distribution or None, got {value!r}.")
    while _replaced:
        setattr(*_replaced.pop())
    _current = value
    if value is None:
        return
    if value.num_processes > 1 and random.seed_is_free():  # the processes draw the same numbers
        random.set_global_seed(engine().agree(random.next_initial_seed()))
    _ = value.device_mesh.backend_mesh  # TensorFlow's has to be there before the first tensor
    store = Variable._store

    def stored(variable, *args, **kwargs):
        store(variable, *args, **kwargs)
        value.place(variable)

    hooks = {(active, name): hook for name, hook in engine().HOOKS.items()}
    hooks |= {(Variable, "_store"): stored, (Trainer, "_run"): _run}
    hooks |= getattr(engine(), "CLASS_HOOKS", {})
    if value.num_processes > 1:
        hooks[files, "commit"] = _commit
    for (owner, name), hook in hooks.items():
        _replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, hook)


def _commit(place):
    """Put a file in its place: the first process does it when all have written theirs."""
    engine().barrier()
    try:
        if _current.data_shard_id == 0:
            place()
    finally:
        engine().barrier()


def _run(trainer, compiled, argument):
    """Run a step of the trainer; the first one lays out what was made before."""
    if trainer.__dict__.get("_distribution") is not _current:
        trainer.__dict__["_distribution"] = _current
        optimizer = trainer.optimizer
        state = [v for metric in trainer.metrics for v in metric.variables]
        for variable in [*trainer.variables, *(optimizer.variables if optimizer else ()), *state]:
            if variable.is_materialized:
                _current.place(variable)
    return engine().run_step(trainer, compiled, argument, _current)


def with_results(trainer, logs, changed):
    """Return logs with the results of the metrics of which `changed(variable)` holds, all summed."""
    for metric in trainer.metrics:
        if any(map(changed, metric.variables)):
            value = metric.result()
            name = getattr(metric, "_logged_as", metric.name)
            results = value if isinstance(value, dict) else {name: value}
            logs.update({name: x for name, x in results.items() if name in logs})
    return logs


def distribute_batch(batch):
    """Return a batch with its arrays laid out over the devices, as the distribution says."""
    if _current is None:
        return batch
    return tree.map_structure(lambda x: engine().rows(x, _current) if _has_rows(x) else x, batch)


def _has_rows(x):
    return hasattr(x, "shape") and len(x.shape) > 0 and getattr(x.dtype, "kind", "f") not in "OUS"


def distribute_tensor(tensor, layout):
    """Return a tensor laid out as a `TensorLayout` says, inside of a step too."""
    layout.check(tensor.shape, "A tensor")
    return engine().distribute_tensor(tensor, layout.backend_layout)


class Distribution:
    """What `DataParallel` and `ModelParallel` share.

    device_mesh: the devices; batch_dim_name: the mesh axis over which rows of a batch are shared
    out, the first by default; auto_shard_dataset: whether every process is given the whole data, of
    which each computes its rows, or rows of its own
    """

    def __init__(self, device_mesh, batch_dim_name=None, auto_shard_dataset=True):
        self.device_mesh, self.auto_shard_dataset = device_mesh, auto_shard_dataset
        self.batch_dim_name = batch_dim_name or device_mesh.axis_names[0]
        if self.batch_dim_name not in device_mesh.axis_names:
            raise ValueError(f"{device_mesh} has no axis {self.batch_dim_name!r} for the batch.")
        self.num_processes, self.data_shard_id = engine().processes()

    @property
    def num_model_replicas(self):
        """Among how many the rows of a batch are shared out."""
        return self.device_mesh.shape[self.device_mesh.axis_names.index(self.batch_dim_name)]

    def get_data_layout(self, data_shape):
        """Return the layout of a batch of this shape: split by rows."""
        axes = (self.batch_dim_name, *(None,) * (len(data_shape) - 1))
        return TensorLayout(axes, self.device_mesh)

    def get_variable_layout(self, variable):
        """Return the layout of a Variable."""
        return TensorLayout((None,) * len(variable.shape), self.device_mesh)

    def get_tensor_layout(self, path):
        """Return the layout that the map has for the path of a tensor, None without one."""
        return None

    def distribute_dataset(self, dataset):
        """Iterate over the batches of a data set, laid out; `fit` does so by itself."""
        with self.scope():
            yield from map(distribute_batch, dataset)

    distribute_tf_dataset = distribute_dataset

    def place(self, variable):
        """Give the storage of a Variable its layout."""
        layout = self.get_variable_layout(variable)
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

    def __repr__(self):
        return f"<{type(self).__name__} device_mesh={self.device_mesh}>"


class DataParallel(Distribution):
    """Every device has all Variables and computes its rows of each batch.

    device_mesh: of one axis, or devices: names; by default all devices
    """

    def __init__(self, device_mesh=None, devices=None, auto_shard_dataset=True):
        if device_mesh is None:
            devices = list_devices() if devices is None else devices
            device_mesh = DeviceMesh((len(devices),), ["batch"], devices)
        super().__init__(device_mesh, None, auto_shard_dataset)


class ModelParallel(Distribution):
    """Variables are split over the devices as a `LayoutMap` says, the others lie on each.

    Rows of a batch are shared out over the axis `batch_dim_name` of the map's mesh (on torch over
    all processes).  Raises ValueError without a layout_map.
    """

    def __init__(
        self, *, layout_map=None, batch_dim_name=None, auto_shard_dataset=True, **kwargs
    ):
        if layout_map is None or kwargs:
            raise ValueError(f"ModelParallel takes a layout_map, got {kwargs or None}.")
        self.layout_map = layout_map
        super().__init__(layout_map.device_mesh, batch_dim_name, auto_shard_dataset)

    def get_variable_layout(self, variable):
        """Return the map's layout for a Variable; an optimizer's is that of what it belongs to."""
        source = getattr(variable, "like", variable)
        found = self.layout_map[source.path] if source.shape == variable.shape else None
        return found or super().get_variable_layout(variable)

    def get_tensor_layout(self, path):
        """Return the layout that the map has for the path of a tensor, None without one."""
        return self.layout_map[path]
