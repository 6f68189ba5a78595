"""Hand-written JAX: a pure step under `jax.jit` with its state donated."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .cells import BERT, CELLS, STACK, fit_data, matrices, rows, stack_batch


def dense(n, m, seed=0):
    limit = math.sqrt(6 / (n + m))
    kernel = jax.random.uniform(jax.random.key(seed), (n, m), minval=-limit, maxval=limit)
    return {"kernel": kernel, "bias": jnp.zeros(m)}


def apply(p, x):
    return x @ p["kernel"] + p["bias"]


def size(parameters):
    return sum(p.size for p in jax.tree.leaves(parameters))


def eager_ops():
    pairs = [(jnp.asarray(a), jnp.asarray(b), a.shape) for a, b in matrices()]

    def twenty(a, b, shape):
        rows, columns = shape
        c = jnp.add(a, 1.5)
        d = jnp.multiply(a, c)
        e = jnp.subtract(d, a)
        f = jnp.transpose(b)
        g = jnp.add(e, f)
        h = jnp.matmul(g, b)
        i = jnp.exp(jnp.multiply(h, 0.01))
        j = jnp.sum(i, axis=-1, keepdims=True)
        k = jnp.divide(i, j)
        m = jnp.matmul(k, a)
        n = jnp.reshape(m, (columns, rows))
        o = jnp.maximum(n, b)
        p = jnp.tanh(o)
        q = jnp.sqrt(jnp.square(p))
        r = jax.nn.relu(jnp.negative(q))
        s = jnp.concatenate([r, q], axis=0)
        return jnp.mean(s)

    def run(n):
        for _ in range(n):
            for a, b, shape in pairs:
                last = twenty(a, b, shape)
        return float(last)

    return run, 0


def functional_call():
    parameters = [dense(16, 16) for _ in range(10)]
    x = jnp.ones((8, 16))

    def run(n):
        for _ in range(n):
            y = x
            for p in parameters:
                y = jax.nn.relu(apply(p, y))
        return float(y.sum())

    return run, size(parameters)


def adam(parameters, gradients, moments, count, rate=1e-3, b1=0.9, b2=0.999, epsilon=1e-7):
    m = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), moments[0], gradients)
    v = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), moments[1], gradients)
    alpha = rate * jnp.sqrt(1 - b2**count) / (1 - b1**count)
    update = lambda p, m, v: p - alpha * m / (jnp.sqrt(v) + epsilon)  # noqa: E731
    return jax.tree.map(update, parameters, m, v), (m, v)


def fit(name, parameters, forward, loss_of):
    batch = CELLS[name].batch
    x, y = fit_data(name, CELLS[name].iterations)

    @partial(jax.jit, donate_argnums=0)
    def step(state, x, y):
        parameters, moments, count, total = state
        loss, gradients = jax.value_and_grad(lambda p: loss_of(forward(p, x), y))(parameters)
        count = count + 1
        parameters, moments = adam(parameters, gradients, moments, count)
        return parameters, moments, count, total + loss

    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = (parameters, (zeros(parameters), zeros(parameters)), jnp.zeros(()), jnp.zeros(()))
    count = size(parameters)  # the arrays are donated by the first step

    def run(n):
        nonlocal state
        state = (*state[:3], jnp.zeros(()))
        for i in range(0, n * batch, batch):
            state = step(state, x[i : i + batch], y[i : i + batch])
        return float(state[3] / n)

    return run, count


def predict(name, parameters, forward):
    batch = CELLS[name].batch
    x, _ = fit_data(name, CELLS[name].iterations)
    forward = jax.jit(forward)

    def run(n):
        parts = [forward(parameters, x[i : i + batch]) for i in range(0, n * batch, batch)]
        return float(np.concatenate(parts).mean())

    return run, size(parameters)


def mean_squares(y, target):
    return jnp.mean((y - target) ** 2)


def cross_entropy(logits, labels):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(chosen)


def mlp(parameters, x):
    for p in parameters[:-1]:
        x = jax.nn.relu(apply(p, x))
    return apply(parameters[-1], x)


def fit_tiny():
    return fit("fit_tiny", [dense(8, 16), dense(16, 1)], mlp, mean_squares)


def mlp_network():
    sizes = [784, 512, 512, 10]
    return [dense(n, m) for n, m in zip(sizes, sizes[1:])], mlp


def cnn_network():
    def conv(p, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "VALID", dimension_numbers=layout)
        y = jax.nn.relu(y + p["bias"])
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, window, window, "VALID")

    def forward(parameters, x):
        x = conv(parameters[1], conv(parameters[0], x))
        return apply(parameters[2], x.reshape(len(x), -1))

    parameters = [dense(9, 32), dense(288, 64), dense(1600, 10)]
    for p, shape in zip(parameters, [(3, 3, 1, 32), (3, 3, 32, 64)]):
        p["kernel"] = p["kernel"].reshape(shape)
    return parameters, forward


def bert_network():
    width, heads = BERT["width"], BERT["heads"]
    scale = {"gamma": jnp.ones(width), "beta": jnp.zeros(width)}

    def norm(p, x):
        mean = jnp.mean(x, -1, keepdims=True)
        variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-12) * p["gamma"] + p["beta"]

    def block(p, x):
        split = (len(x), -1, heads, width // heads)
        q, k, v = (apply(p[name], x).reshape(split) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape)
        x = norm(p["norm1"], x + apply(p["out"], attended))
        hidden = jax.nn.gelu(apply(p["up"], x), approximate=False)
        return norm(p["norm2"], x + apply(p["down"], hidden))

    def forward(p, tokens):
        x = norm(p["norm"], p["word"][tokens] + p["position"])
        for layer in p["blocks"]:
            x = block(layer, x)
        return apply(p["head"], x[:, 0])

    def make_block():
        square = {name: dense(width, width) for name in ("query", "key", "value", "out")}
        up, down = dense(width, BERT["hidden"]), dense(BERT["hidden"], width)
        return square | {"up": up, "down": down, "norm1": scale, "norm2": scale}

    parameters = {
        "word": jax.random.uniform(jax.random.key(0), (BERT["vocabulary"], width)) * 0.1 - 0.05,
        "position": jax.random.uniform(jax.random.key(1), (BERT["length"], width)) * 0.1 - 0.05,
        "norm": scale,
        "blocks": [make_block() for _ in range(BERT["depth"])],
        "head": dense(width, BERT["classes"]),
    }
    parameters = jax.tree.map(jnp.copy, parameters)  # donation allows no array twice
    return parameters, forward


def fit_mlp():
    return fit("fit_mlp", *mlp_network(), cross_entropy)


def fit_cnn():
    return fit("fit_cnn", *cnn_network(), cross_entropy)


def fit_bert():
    return fit("fit_bert", *bert_network(), cross_entropy)


def predict_mlp():
    return predict("predict_mlp", *mlp_network())


def predict_cnn():
    return predict("predict_cnn", *cnn_network())


def predict_bert():
    return predict("predict_bert", *bert_network())


def predict_row():
    parameters, x = [dense(20, 64), dense(64, 64), dense(64, 3)], rows()
    forward = jax.jit(lambda p, x: jax.nn.softmax(mlp(p, x)))

    def run(n):
        for i in range(n):
            i %= len(x)
            y = np.asarray(forward(parameters, x[i : i + 1]))
        return float(y.sum())

    return run, size(parameters)


def jit_60():
    parameters = [dense(STACK["width"], STACK["width"], i) for i in range(STACK["depth"])]
    state = (parameters, jax.tree.map(jnp.zeros_like, parameters))
    count = size(parameters)

    def loss_of(parameters, x, y):
        for p in parameters:
            x = x + 0.1 * jax.nn.relu(apply(p, x))
        return jnp.mean((x - y) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def step(state, x, y):
        parameters, momentum = state
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
        momentum = jax.tree.map(lambda m, g: 0.9 * m - 1e-4 * g, momentum, gradients)
        return (jax.tree.map(jnp.add, parameters, momentum), momentum), loss

    x, y = (jnp.asarray(a) for a in stack_batch())

    def run(n):
        nonlocal state
        for _ in range(n):
            state, loss = step(state, x, y)
        return float(loss)

    return run, count
