"""Distribution on JAX: a NamedSharding on Variables and batches; the compiler does the rest."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from khub.backend import active
from khub.backend.jax.arrays import convert_to_numpy as _convert
from khub.backend.jax.arrays import convert_to_tensor
from khub.backend.scope import local
from khub.backend.variable import Variable
from khub.distribution import distribute_batch, distribution


def initialize(address, count, index, seconds):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address, count, index, initialization_timeout=seconds, heartbeat_timeout_seconds=seconds
    )


def processes():
    return jax.process_count(), jax.process_index()


def barrier():
    multihost_utils.sync_global_devices("khub")


def agree(number):
    return int(multihost_utils.broadcast_one_to_all(np.uint32(number)))


def _name(device):
    return f"{device.platform}:{device.id}"


def list_devices(kind):
    return [_name(device) for device in jax.devices(kind)]


def mesh(described):
    kind = described.devices.flat[0].partition(":")[0]
    known = {_name(device): device for device in jax.devices(kind)}
    devices = [known[name] for name in described.devices.flat]
    return Mesh(np.array(devices).reshape(described.shape), described.axis_names)


def layout(described):
    return NamedSharding(described.device_mesh.backend_mesh, PartitionSpec(*described.axes))


def lay_out(variable, sharding):
    return _placed(variable._storage, sharding)


def _placed(value, sharding):
    if getattr(value, "sharding", None) == sharding:
        return value
    value = _to_numpy(value)
    # a copy, because jit donates the buffers
    return jnp.copy(jax.make_array_from_callback(value.shape, sharding, lambda at: value[at]))


def distribute_tensor(tensor, sharding):
    if isinstance(tensor, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(tensor, sharding)
    return _placed(tensor, sharding)


def rows(x, chosen):
    sharding = chosen.get_data_layout(x.shape).backend_layout
    if not chosen.auto_shard_dataset:
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))
    if len(x) % chosen.num_model_replicas:  # a last batch: whole, on each device
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def run_step(compiled, argument, chosen):
    return compiled(distribute_batch(argument))


def _write(storage, value):
    placed = _placed(value, storage.sharding)
    return jnp.copy(placed) if placed is value else placed  # it may be another Variable's buffer


_assign = Variable.assign


def _assign_laid_out(self, value):
    if local.scope is not None and np.shape(value) == self.shape:
        # in a program; else the compiler chooses where the new value lies
        layout = distribution().get_variable_layout(self).backend_layout
        value = jax.lax.with_sharding_constraint(convert_to_tensor(value, self.dtype), layout)
    return _assign(self, value)


def _to_numpy(x):
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return _convert(x)


HOOKS = [(Variable, "assign", _assign_laid_out), (active, "write", _write)]
HOOKS += [(active, "convert_to_numpy", _to_numpy)]
