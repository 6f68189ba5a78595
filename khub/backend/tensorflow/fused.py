"""Optimizer updates in TensorFlow's own kernels, one op a Variable."""

import tensorflow as tf


def adam(optimizer, gradients, variables, slots, rate):
    """Adam and AdamW."""
    if optimizer.amsgrad or any(v.dtype != "float32" for v in variables):
        return False
    step = tf.cast(optimizer.updates() + 1, tf.float32)
    powers = tf.pow(optimizer.beta_1, step), tf.pow(optimizer.beta_2, step)
    for gradient, variable, (m, v) in zip(gradients, variables, slots, strict=True):
        storage = variable.materialize()
        if optimizer.weight_decay and optimizer.decays(variable):
            storage.assign_sub(storage * (rate * optimizer.weight_decay))
        tf.raw_ops.ResourceApplyAdam(
            var=storage.handle,
            m=m.materialize().handle,
            v=v.materialize().handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )
    return True


fused = {"Adam": adam, "AdamW": adam}
