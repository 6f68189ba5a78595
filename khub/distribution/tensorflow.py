"""Distribution on TensorFlow: a MirroredStrategy over the devices of one process."""

from functools import cache, partial

import tensorflow as tf

from khub import tree
from khub.backend import active
from khub.backend.scope import Scope
from khub.backend.tensorflow import engine
from khub.distribution import replicas

ONE = (
    "on the backend tensorflow one process trains (DataParallel); jax and torch have ModelParallel"
)


def initialize(address, count, index, seconds):
    if count not in (None, 1):
        raise NotImplementedError(f"Got {count} processes: {ONE} and several processes.")


def processes():
    return 1, 0


def list_devices(kind):
    kinds = [kind.upper()] if kind else ["TPU", "GPU", "CPU"]
    found = [tf.config.list_logical_devices(kind) for kind in kinds]
    return [x.name.split("device:")[1].lower() for x in next(filter(None, found), [])]


@cache  # two strategies of the same devices would take each other's messages
def _strategy(*devices):
    return tf.distribute.MirroredStrategy(devices)


def mesh(described):
    return _strategy(*(name.upper() for name in described.devices.flat))


def layout(described):
    if any(described.axes):
        raise NotImplementedError(f"A tensor cannot be laid out as {described.axes}: {ONE}.")
    return described.device_mesh.backend_mesh


def distribute_tensor(tensor, strategy):
    return tensor


def lay_out(variable, strategy):
    storage = variable._storage
    if isinstance(storage, tf.distribute.DistributedValues):
        return storage
    with tf.init_scope(), strategy.scope():  # each device has its own, assigned the same values
        return tf.Variable(
            storage.value(),
            trainable=storage.trainable,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )


def total(tensors, share=1):
    tensors = [x * tf.cast(share, x.dtype) for x in tensors]
    return tf.distribute.get_replica_context().all_reduce("SUM", tensors)


def rows(x, distribution):
    return x  # a step shares them out


def run_step(compiled, argument, distribution):
    kept = getattr(compiled, "on_devices", (None, None))
    if kept[0] is not distribution:
        raw = getattr(compiled, "__wrapped__", compiled)
        with tf.__internal__.FuncGraph("first").as_default(), Scope():
            raw(argument)  # metrics make their Variables, which a device alone cannot
        kept = distribution, partial(_on_devices, raw, distribution)
        if raw is not compiled:  # else it runs eagerly
            kept = compiled.on_devices = distribution, engine.jit(kept[1])
    return kept[1](argument)


def _on_devices(raw, distribution, argument):
    strategy, count = distribution.device_mesh.backend_mesh, distribution.num_model_replicas

    def on_device(argument):
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        result, own = replicas.step(raw, argument, count, int(tf.get_static_value(index)))
        grouped = isinstance(argument, list)
        return result if grouped else tree.map_structure(lambda x: x[:own], result)

    if isinstance(argument, list):
        for batch in argument:
            results = strategy.run(on_device, [[batch]])
        return tree.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)
    results = strategy.run(on_device, [argument])
    joined = [tf.concat(strategy.experimental_local_results(x), 0) for x in tree.flatten(results)]
    return tree.pack_sequence_as(results, joined)


def _next_seed(seeds):
    return engine.next_seed(seeds) + tf.constant([replicas.now.index, 0])


HOOKS = [*replicas.HOOKS, (active, "next_seed", _next_seed)]
