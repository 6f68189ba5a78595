"""Distribution on PyTorch: a process has one device and computes its rows of a batch.

Variables that are split are DTensors. Read, they are gathered and their gradient is scattered, as
FSDP does it; an optimizer's step is on the parts.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import tensor as dtensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn import Parameter

from khub import tree
from khub.backend import active
from khub.backend.torch import engine
from khub.backend.torch.arrays import place
from khub.distribution import replicas
from khub.optimizers import Optimizer

barrier = dist.barrier


def initialize(address, count, index, seconds):
    if torch.cuda.is_available():  # "cuda" is from here on this process's own device
        local = int(os.environ.get("LOCAL_RANK", index or 0))
        torch.cuda.set_device(local % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=address and f"tcp://{address}",  # None: torchrun's environment
        world_size=-1 if count is None else count,
        rank=-1 if index is None else index,
        timeout=timedelta(seconds=seconds),
    )


def processes():
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def agree(number):
    number = torch.tensor(number)
    dist.broadcast(number, 0)
    return int(number)


def list_devices(kind):
    kind = kind or getattr(place(), "type", "cpu").replace("cuda", "gpu")
    return [f"{kind}:{i}" for i in range(processes()[0])]


def mesh(described):
    if not dist.is_initialized() or described.devices.size != dist.get_world_size():
        raise ValueError(
            f"{described} over {processes()[0]} processes: on torch each has one; start them "
            "(torchrun --nproc-per-node N) and call khub.distribution.initialize() first."
        )
    kind = described.devices.flat[0].partition(":")[0].replace("gpu", "cuda")
    return dist.init_device_mesh(kind, described.shape, mesh_dim_names=tuple(described.axis_names))


def layout(described):
    axes, names = described.axes, described.device_mesh.axis_names
    placements = [Shard(axes.index(name)) if name in axes else Replicate() for name in names]
    return described.device_mesh.backend_mesh, placements


def distribute_tensor(tensor, layout):
    if isinstance(tensor, DTensor):
        return tensor.redistribute(*layout)
    return dtensor.distribute_tensor(tensor, *layout, src_data_rank=None)


def lay_out(variable, layout):
    storage = variable._storage
    if isinstance(storage, DTensor) or all(p.is_replicate() for p in layout[1]):
        return storage
    parts = distribute_tensor(storage.detach(), layout)
    return Parameter(parts, storage.requires_grad) if isinstance(storage, Parameter) else parts


def _read(storage):
    if not isinstance(storage, DTensor) or _in_parts:
        return storage
    axes, share = storage.device_mesh.ndim, replicas.now.share
    whole = storage.redistribute(placements=[Replicate()] * axes)
    whole = whole.to_local(grad_placements=[Partial()] * axes)
    if whole.requires_grad and share is not None:
        whole.register_hook(lambda gradient: gradient * share)
    return whole


def _write(storage, value):
    if not isinstance(storage, DTensor):
        return engine.write(storage, value.full_tensor() if isinstance(value, DTensor) else value)
    value = distribute_tensor(value.detach(), (storage.device_mesh, storage.placements))
    with torch.no_grad():
        return storage.copy_(value) if isinstance(storage, Parameter) else value.clone()


_apply_whole, _in_parts = Optimizer.apply, []


def _apply(self, *args, **kwargs):
    _in_parts.append(True)
    try:
        with implicit_replication():  # a norm of all gradients scales those of whole Variables, too
            return _apply_whole(self, *args, **kwargs)
    finally:
        _in_parts.pop()


def total(tensors, share=1):
    """Sum over the processes: one message a dtype and device; DTensors' gradients are sums."""
    result, kinds = list(tensors), {}
    for i, x in enumerate(result):
        if not isinstance(x, DTensor):
            kinds.setdefault((x.dtype, x.device), []).append(i)
    for (kind, _), at in kinds.items():
        flat = torch.cat([result[i].reshape(-1) for i in at]) * share
        dist.all_reduce(flat)
        for i, part in zip(at, flat.split([result[i].numel() for i in at]), strict=True):
            result[i] = part.view(result[i].shape).to(kind)
    return result


def rows(x, distribution):
    return x[replicas.cut(len(x), *processes())[0]] if distribution.auto_shard_dataset else x


def run_step(compiled, argument, distribution):
    for batch in argument if isinstance(argument, list) else [argument]:
        size = whole = next(x for x in tree.flatten(batch) if x is not None).shape[0]
        if not distribution.auto_shard_dataset:
            whole = int(total([torch.tensor(size)])[0])
        local = not distribution.auto_shard_dataset and whole
        batch = [batch] if isinstance(argument, list) else batch
        result, own = replicas.step(compiled, batch, *processes(), local)
    if isinstance(argument, list) or local:
        return result
    return tree.map_structure(lambda x: _joined(x[:own].contiguous(), size), result)


def _joined(x, size):
    shape = torch.Size([size, *x.shape[1:]])
    line = dist.init_device_mesh(x.device.type, processes()[:1])
    strides = x.new_empty(shape).stride()
    parts = DTensor.from_local(x, line, [Shard(0)], run_check=False, shape=shape, stride=strides)
    return parts.full_tensor()


def _next_seed(seeds):
    if seeds.native is None:  # other numbers in each process
        seeds.native = engine.make_generator(seeds.seed + (processes()[1] << 32))
    return engine.next_seed(seeds)


HOOKS = [*replicas.HOOKS, (Optimizer, "apply", _apply)]
HOOKS += [(active, "read", _read), (active, "write", _write), (active, "next_seed", _next_seed)]
