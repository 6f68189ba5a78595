"""Optimizer updates of all Variables in one call (torch's fused and foreach kernels)."""

import math

import torch
from torch.nn import Parameter


def _operands(variables, slots, gradients):
    """Return (parameters, slots by kind, gradients) of one memory layout, None where none fits."""
    parameters = [v._storage for v in variables]
    if not all(type(p) is Parameter and p.dtype is torch.float32 for p in parameters):
        return None
    matched = []
    for p, g, own in zip(parameters, gradients, slots, strict=True):
        strides = p.stride()  # the kernels walk memory, so layouts have to agree
        matched.append(g if g.stride() == strides else torch.empty_like(p).copy_(g))
        for slot in own:
            if slot.materialize().stride() != strides:
                slot._storage = torch.empty_like(p, requires_grad=False).copy_(slot._storage)
    by_kind = list(zip(*[[slot._storage for slot in own] for own in slots], strict=True))
    return parameters, [list(kind) for kind in by_kind], matched


@torch.no_grad()
def adam(optimizer, gradients, variables, slots, rate):
    """Adam and AdamW; Keras' epsilon stands outside the bias correction, torch's inside."""
    operands = None if optimizer.amsgrad else _operands(variables, slots, gradients)
    if operands is None:
        return False
    parameters, (m, v), gradients = operands
    decay = optimizer.weight_decay
    if decay:
        decayed = [p for p, x in zip(parameters, variables, strict=True) if optimizer.decays(x)]
        torch._foreach_mul_(decayed, 1 - float(rate) * decay)
    step = int(optimizer.updates()) + 1
    torch._fused_adam_(
        parameters,
        gradients,
        m,
        v,
        [],
        [parameters[0].new_full((), step)] * len(parameters),
        lr=float(rate),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        weight_decay=0.0,
        eps=optimizer.epsilon / math.sqrt(1 - optimizer.beta_2**step),
        amsgrad=False,
        maximize=False,
    )
    return True


@torch.no_grad()
def sgd(optimizer, gradients, variables, slots, rate):
    """Gradient descent, with plain or Nesterov momentum."""
    operands = None if optimizer.weight_decay else _operands(variables, slots, gradients)
    if operands is None:
        return False
    parameters, velocity, gradients = operands
    rate, momentum = float(rate), optimizer.momentum
    if not velocity:
        torch._foreach_add_(parameters, gradients, alpha=-rate)
        return True
    (velocity,) = velocity
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, gradients, alpha=-rate)
    if optimizer.nesterov:
        torch._foreach_add_(parameters, velocity, alpha=momentum)
        torch._foreach_add_(parameters, gradients, alpha=-rate)
    else:
        torch._foreach_add_(parameters, velocity)
    return True


fused = {"Adam": adam, "AdamW": adam, "SGD": sgd}
