"""Distribution on PyTorch: every process computes its rows of a batch.

Gradients are summed over the processes, each weighted by its share of the rows; Variables with a
layout are DTensors of which a process keeps its part: read, they are gathered (as FSDP does it),
their gradient is scattered.
"""

import math
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import tensor as sharded
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn import Parameter

from khub import tree
from khub.backend.scope import sparse_gradients
from khub.backend.torch import engine
from khub.distribution.distribution import distribute_batch, with_results
from khub.optimizers import Optimizer

BUCKET = 1 << 23  # numbers summed in one message
_now = {"share": 1.0, "parts": False}  # of the batch's rows; whether DTensors are read as they are


def initialize(address, count, index, seconds):
    if dist.is_initialized():
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"tcp://{address}" if address else None,  # None: torchrun's environment
        world_size=-1 if count is None else count,
        rank=-1 if index is None else index,
        timeout=timedelta(seconds=seconds),
    )


def processes():
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


barrier = dist.barrier


def agree(number):
    number = torch.tensor(number)
    dist.broadcast(number, 0)
    return int(number)


def list_devices(kind):
    kind = {"gpu": "cuda"}.get(kind, kind or "cpu")
    return [f"{kind}:{i}" for i in range(processes()[0])]  # one a process


def mesh(described):
    if described.devices.size != processes()[0]:
        raise ValueError(
            f"{described} has {described.devices.size} devices, of {processes()[0]} processes: on "
            "torch a process has one device; start so many (torchrun --nproc-per-node) and call "
            "khub.distribution.initialize() first."
        )
    kind = described.devices.flat[0].partition(":")[0]
    names = tuple(described.axis_names)
    return dist.init_device_mesh(kind, described.shape, mesh_dim_names=names)


def layout(described):
    """(mesh, for each of its axes: Shard(axis of the tensor) or Replicate())"""
    axes, names = described.axes, described.device_mesh.axis_names
    placements = [Shard(axes.index(name)) if name in axes else Replicate() for name in names]
    return described.device_mesh.backend_mesh, placements


# --- Variables -----------------------------------------------------------------------------------
def distribute_tensor(tensor, layout):
    mesh, placements = layout
    if isinstance(tensor, DTensor):
        return tensor.redistribute(mesh, placements)
    return sharded.distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def lay_out(variable, layout):
    storage = variable._storage
    if isinstance(storage, DTensor) or all(p.is_replicate() for p in layout[1]):
        return storage
    parts = distribute_tensor(storage.detach(), layout)
    return Parameter(parts, storage.requires_grad) if isinstance(storage, Parameter) else parts


def _read(storage):
    if not isinstance(storage, DTensor) or _now["parts"]:
        return storage
    everywhere = [Replicate()] * storage.device_mesh.ndim
    whole = storage.redistribute(placements=everywhere)
    whole = whole.to_local(grad_placements=[Partial()] * storage.device_mesh.ndim)
    if whole.requires_grad:
        share = _now["share"]
        whole.register_hook(lambda gradient: gradient * share)
    return whole


def _write(storage, value):
    if not isinstance(storage, DTensor):
        return engine.write(storage, value.full_tensor() if isinstance(value, DTensor) else value)
    layout = storage.device_mesh, storage.placements
    value = distribute_tensor(value.detach(), layout)
    with torch.no_grad():
        return storage.copy_(value) if isinstance(storage, Parameter) else value.clone()


def _apply(self, grads, trainable_variables=None):
    """An optimizer's step is on the parts: gradients and slots are laid out as the Variables."""
    before, _now["parts"] = _now["parts"], True
    try:
        with implicit_replication():  # a norm of all gradients scales those of whole Variables, too
            return _apply_whole(self, grads, trainable_variables)
    finally:
        _now["parts"] = before


_apply_whole = Optimizer.apply


# --- gradients -----------------------------------------------------------------------------------
def _value_and_grad(function, variables, has_aux):
    own = engine.value_and_grad(function, variables, has_aux)
    if variables is None:
        return own

    def call(*args, **kwargs):
        if engine._depth.gradients:  # a gradient of this gradient will be summed
            return own(*args, **kwargs)
        with sparse_gradients(False):
            result, gradients = own(*args, **kwargs)
        return result, _summed(gradients)

    return call


def _summed(gradients):
    """Sum over all processes, in messages of `BUCKET` numbers; those of DTensors are so already."""
    result, buckets, size = list(gradients), {}, {}
    for i, gradient in enumerate(gradients):
        if not isinstance(gradient, DTensor):
            kind = gradient.dtype
            size[kind] = size.get(kind, 0) + gradient.numel()
            buckets.setdefault((kind, size[kind] // BUCKET), []).append(i)
    sent = []
    for members in buckets.values():
        flat = torch.cat([gradients[i].reshape(-1) for i in members]).mul_(_now["share"])
        sent.append((members, flat, dist.all_reduce(flat, async_op=True)))
    for members, flat, message in sent:
        message.wait()
        parts = flat.split([gradients[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            result[i] = part.view(gradients[i].shape)
    return result


# --- steps ---------------------------------------------------------------------------------------
def _mine(size, distribution):
    """Return (first row, number of rows, share of all rows) of this process."""
    count, index = processes()
    if not distribution.auto_shard_dataset:
        total = torch.tensor(size)
        dist.all_reduce(total)
        return 0, size, size / int(total)
    part = math.ceil(size / count)  # as torch.chunk and DTensor have it
    own = max(0, min(part, size - index * part))
    return index * part, own, own / size


def rows(x, distribution):
    first, own, _ = _mine(len(x), distribution)
    return x[first : first + own] if own else x[:1]


def run_step(trainer, compiled, argument, distribution):
    if processes()[0] == 1:
        return compiled(argument)
    if isinstance(argument, list):
        for batch in argument:
            logs = _one(trainer, compiled, batch, distribution)
        return logs
    return _predict(compiled, argument, distribution)


def _predict(compiled, argument, distribution):
    size = len(next(x for x in tree.flatten(argument) if x is not None))
    own = _mine(size, distribution)[1]
    outputs = compiled(distribute_batch(argument))
    if not distribution.auto_shard_dataset:
        return outputs
    line = dist.init_device_mesh("cpu", processes()[:1])

    def gathered(x):
        shape = torch.Size([size, *x.shape[1:]])
        strides = torch.empty(shape, device="meta").stride()
        mine = x[:own].contiguous()
        parts = DTensor.from_local(
            mine, line, [Shard(0)], run_check=False, shape=shape, stride=strides
        )
        return parts.full_tensor()

    return tree.map_structure(gathered, outputs)


def _one(trainer, compiled, batch, distribution):
    """A step on this process' rows; then sum what metrics added, average other state and logs."""
    size = len(next(x for x in tree.flatten(batch) if x is not None))
    _, own, share = _mine(size, distribution)
    before = {v: v._storage for v in _state(trainer)}
    _now["share"] = share
    logs = dict(compiled([distribute_batch(batch)]))
    plain = [n for n, x in logs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    changed, parts = {}, [logs[name] * share for name in plain]
    for v in _state(trainer):
        new, old = v._storage, before.get(v)
        if new is not old and v.aggregation == "sum":
            changed[v] = 0 if old is None else old
            parts.append((new - changed[v]) * (own > 0))
        elif new is not old and new.is_floating_point():
            changed[v] = 0
            parts.append(new * share)
    flat = torch.cat([part.reshape(-1).double() for part in parts])
    dist.all_reduce(flat)
    total = iter(flat.split([part.numel() for part in parts]))
    for name in plain:
        logs[name] = next(total).reshape(logs[name].shape).to(logs[name].dtype)
    for v, old in changed.items():
        v.assign((next(total).reshape(v.shape) + old).to(v._storage.dtype))
    return with_results(trainer, logs, changed.__contains__)


def _state(trainer):
    """Return the Variables beside those trained, looked up anew when there are new metrics."""
    key = trainer._compiled, len(trainer._compiled.metrics), trainer.train_function
    if trainer.__dict__.get("_state_key") != key:
        state = [v for metric in trainer.metrics for v in metric.variables]
        state = [*trainer.non_trainable_variables, *state]
        trainer.__dict__.update(_state_key=key, _state_shared=state)
    return trainer._state_shared


def _next_seed(seeds):
    if seeds.native is None:  # other numbers in each process
        seeds.native = engine.make_generator(seeds.seed + (processes()[1] << 32))
    return seeds.native


HOOKS = {
    "read": _read,
    "write": _write,
    "value_and_grad": _value_and_grad,
    "next_seed": _next_seed,
}
CLASS_HOOKS = {(Optimizer, "apply"): _apply}
