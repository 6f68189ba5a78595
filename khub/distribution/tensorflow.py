"""Distribution on TensorFlow: tf.distribute.MirroredStrategy over the devices of one process.

Each device has a copy of every Variable and computes its rows of a batch; gradients are summed over
the devices, each weighted by its share of the rows, so all copies stay alike.
"""

import math
import threading
from functools import cache

import tensorflow as tf

from khub import tree
from khub.backend.scope import Scope, sparse_gradients
from khub.backend.tensorflow import engine
from khub.distribution.distribution import with_results

SUM, FIRST = tf.VariableAggregation.SUM, tf.VariableAggregation.ONLY_FIRST_REPLICA
MEAN = tf.VariableAggregation.MEAN


class _Now(threading.local):  # a thread traces a device's part of a step
    device, share = 0, None  # of the rows; None outside of a step


_now = _Now()
_written = set()  # ids of the storages that a step assigns


def initialize(address, count, index, seconds):
    if count not in (None, 1):
        raise NotImplementedError(
            "khub.distribution on TensorFlow uses the devices of one process; several processes "
            "train on the backends jax and torch."
        )


def processes():
    return 1, 0


def list_devices(kind):
    kinds = [kind.upper()] if kind else ["TPU", "GPU", "CPU"]
    found = [[x.name for x in tf.config.list_logical_devices(kind)] for kind in kinds]
    return [name.split("device:")[1].lower() for name in next(filter(None, found), [])]


@cache
def _strategy(*devices):
    return tf.distribute.MirroredStrategy(devices)


def mesh(described):
    return _strategy(*(name.upper() for name in described.devices.flat))


def layout(described):
    return described


# --- Variables -----------------------------------------------------------------------------------
def lay_out(variable, layout):
    if any(layout.axes):
        raise NotImplementedError(
            f"{variable.path}: the backend tensorflow has DataParallel; ModelParallel needs jax or "
            "torch."
        )
    storage, strategy = variable._storage, layout.device_mesh.backend_mesh
    if isinstance(storage, tf.distribute.DistributedValues):
        return storage
    how = SUM if variable.aggregation == "sum" else FIRST if variable.made_trainable else MEAN
    if how is MEAN and not storage.dtype.is_floating:
        how = FIRST
    with tf.init_scope(), strategy.scope():
        return tf.Variable(
            storage.value(),
            trainable=storage.trainable,
            name=storage.name.partition(":")[0],
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=how,
        )


def distribute_tensor(tensor, layout):
    raise NotImplementedError("The backend tensorflow lays out no tensors: use jax or torch.")


def _write(storage, value):
    if _now.share != 0 or storage.aggregation is not SUM:  # a device without rows counts nothing
        storage.assign(value)
    _written.add(id(storage))
    return storage


def _next_seed(seeds):
    return engine.next_seed(seeds) + tf.constant([_now.device, 0])


def _value_and_grad(function, variables, has_aux):
    own = engine.value_and_grad(function, variables, has_aux)

    def call(*args, **kwargs):
        with sparse_gradients(False):
            result, gradients = own(*args, **kwargs)
        gradients = [g * tf.cast(_now.share, g.dtype) for g in gradients]
        return result, tf.distribute.get_replica_context().all_reduce("SUM", gradients)

    return own if variables is None or _now.share is None else call


# --- steps ---------------------------------------------------------------------------------------
def rows(x, distribution):
    return x  # a step shares them out


def run_step(trainer, compiled, argument, distribution):
    made = trainer.__dict__.setdefault("_replicated", {})
    if compiled not in made:
        raw = getattr(compiled, "__wrapped__", compiled)
        with tf.__internal__.FuncGraph("probe").as_default(), Scope():
            raw(argument)  # metrics make their Variables: a device alone cannot

        def run(argument):
            if isinstance(argument, list):
                for batch in argument:
                    logs = _one(trainer, raw, batch, distribution)
                return logs
            return _predict(raw, argument, distribution)

        made[compiled] = run if raw is compiled else engine.jit(run)
    return made[compiled](argument)


def _on_devices(raw, argument, wrap, distribution):
    """Return (result of each device, the rows it had)."""
    strategy, count = distribution.device_mesh.backend_mesh, distribution.num_model_replicas
    size = tree.flatten(argument)[0].shape[0]
    part = math.ceil(size / count)
    own = [max(0, min(part, size - i * part)) for i in range(count)]

    def on_device():
        i = int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
        _now.device, _now.share = i, own[i] / size
        first = i * part if own[i] else 0
        shard = tree.map_structure(
            lambda x: x if x is None else x[first : first + max(own[i], 1)], argument
        )
        try:
            return raw(wrap(shard))
        finally:
            _now.device, _now.share = 0, None

    results = strategy.run(on_device)
    flat = [strategy.experimental_local_results(x) for x in tree.flatten(results)]
    return results, flat, own


def _predict(raw, argument, distribution):
    structure, flat, own = _on_devices(raw, argument, lambda x: x, distribution)
    joined = [
        tf.concat([x[:n] for x, n in zip(parts, own, strict=True)], 0) for parts in flat
    ]
    return tree.pack_sequence_as(structure, joined)


def _one(trainer, raw, batch, distribution):
    _written.clear()
    structure, flat, own = _on_devices(raw, batch, lambda x: [x], distribution)
    means = [sum(x * (n / sum(own)) for x, n in zip(parts, own, strict=True)) for parts in flat]
    logs = tree.pack_sequence_as(structure, means)
    return with_results(trainer, logs, lambda v: id(v._storage) in _written)


HOOKS = {"write": _write, "next_seed": _next_seed, "value_and_grad": _value_and_grad}
