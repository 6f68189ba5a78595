"""Hand-written TensorFlow without Keras: a `tf.function` step over `tf.Variable`s."""

import math

import numpy as np
import tensorflow as tf

from .cells import BERT, CELLS, fit_data, matrices, rows


def dense(n, m):
    limit = math.sqrt(6 / (n + m))
    return tf.Variable(tf.random.uniform((n, m), -limit, limit)), tf.Variable(tf.zeros(m))


def apply(p, x):
    return x @ p[0] + p[1]


def size(variables):
    return sum(math.prod(v.shape) for v in variables)


def eager_ops():
    pairs = [(tf.constant(a), tf.constant(b), a.shape) for a, b in matrices()]

    def twenty(a, b, shape):
        rows, columns = shape
        c = tf.add(a, 1.5)
        d = tf.multiply(a, c)
        e = tf.subtract(d, a)
        f = tf.transpose(b)
        g = tf.add(e, f)
        h = tf.matmul(g, b)
        i = tf.exp(tf.multiply(h, 0.01))
        j = tf.reduce_sum(i, axis=-1, keepdims=True)
        k = tf.divide(i, j)
        m = tf.matmul(k, a)
        n = tf.reshape(m, (columns, rows))
        o = tf.maximum(n, b)
        p = tf.tanh(o)
        q = tf.sqrt(tf.square(p))
        r = tf.nn.relu(tf.negative(q))
        s = tf.concat([r, q], axis=0)
        return tf.reduce_mean(s)

    def run(n):
        for _ in range(n):
            for a, b, shape in pairs:
                last = twenty(a, b, shape)
        return float(last)

    return run, 0


def functional_call():
    parameters = [dense(16, 16) for _ in range(10)]
    x = tf.ones((8, 16))

    def run(n):
        for _ in range(n):
            y = x
            for p in parameters:
                y = tf.nn.relu(apply(p, y))
        return float(tf.reduce_sum(y))

    return run, size(v for p in parameters for v in p)


def fit(name, variables, forward, loss_of):
    batch = CELLS[name].batch
    x, y = fit_data(name, CELLS[name].iterations)
    slots = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]
    count = tf.Variable(0.0)
    total = tf.Variable(0.0)

    @tf.function(jit_compile=False)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(forward(x), y)
        gradients = tape.gradient(loss, variables)
        count.assign_add(1.0)
        b1_power, b2_power = 0.9**count, 0.999**count
        for v, (m, s), g in zip(variables, slots, gradients):
            # Indexed slices of an embedding become dense: Adam decays every row's moments.
            tf.raw_ops.ResourceApplyAdam(
                var=v.handle,
                m=m.handle,
                v=s.handle,
                beta1_power=b1_power,
                beta2_power=b2_power,
                lr=1e-3,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-7,
                grad=tf.convert_to_tensor(g),
            )
        total.assign_add(loss)

    def run(n):
        total.assign(0.0)
        for i in range(0, n * batch, batch):
            step(tf.constant(x[i : i + batch]), tf.constant(y[i : i + batch]))
        return float(total) / n

    return run, size(variables)


def predict(name, variables, forward):
    batch = CELLS[name].batch
    x, _ = fit_data(name, CELLS[name].iterations)
    forward = tf.function(forward)

    def run(n):
        starts = range(0, n * batch, batch)
        parts = [forward(tf.constant(x[i : i + batch])).numpy() for i in starts]
        return float(np.concatenate(parts).mean())

    return run, size(variables)


def mean_squares(y, target):
    return tf.reduce_mean((y - target) ** 2)


def cross_entropy(logits, labels):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses)


def mlp(parameters, x):
    for p in parameters[:-1]:
        x = tf.nn.relu(apply(p, x))
    return apply(parameters[-1], x)


def perceptron(*sizes):
    parameters = [dense(n, m) for n, m in zip(sizes, sizes[1:])]
    return [v for p in parameters for v in p], lambda x: mlp(parameters, x)


def fit_tiny():
    return fit("fit_tiny", *perceptron(8, 16, 1), mean_squares)


def cnn_network():
    parameters = [dense(9, 32), dense(288, 64), dense(1600, 10)]
    kernels = [
        tf.Variable(tf.reshape(parameters[0][0], (3, 3, 1, 32))),
        tf.Variable(tf.reshape(parameters[1][0], (3, 3, 32, 64))),
    ]

    def forward(x):
        for kernel, (_, bias) in zip(kernels, parameters):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID") + bias)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return apply(parameters[2], tf.reshape(x, (-1, 1600)))

    biases = [bias for _, bias in parameters]
    return [*kernels, *biases, parameters[2][0]], forward


def bert_network():
    width, heads, length = BERT["width"], BERT["heads"], BERT["length"]

    def scale():
        return tf.Variable(tf.ones(width)), tf.Variable(tf.zeros(width))

    def norm(p, x):
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, p[1], p[0], 1e-12)

    def split(x):
        return tf.transpose(tf.reshape(x, (-1, length, heads, width // heads)), (0, 2, 1, 3))

    def block(p, x):
        q, k, v = (split(apply(p[name], x)) for name in ("query", "key", "value"))
        scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(width // heads)
        attended = tf.transpose(tf.nn.softmax(scores) @ v, (0, 2, 1, 3))
        attended = tf.reshape(attended, (-1, length, width))
        x = norm(p["norm1"], x + apply(p["out"], attended))
        hidden = tf.nn.gelu(apply(p["up"], x))
        return norm(p["norm2"], x + apply(p["down"], hidden))

    def make_block():
        square = {name: dense(width, width) for name in ("query", "key", "value", "out")}
        up, down = dense(width, BERT["hidden"]), dense(BERT["hidden"], width)
        return square | {"up": up, "down": down, "norm1": scale(), "norm2": scale()}

    word = tf.Variable(tf.random.uniform((BERT["vocabulary"], width), -0.05, 0.05))
    position = tf.Variable(tf.random.uniform((length, width), -0.05, 0.05))
    first, blocks = scale(), [make_block() for _ in range(BERT["depth"])]
    head = dense(width, BERT["classes"])

    def forward(tokens):
        x = norm(first, tf.gather(word, tokens) + position)
        for p in blocks:
            x = block(p, x)
        return apply(head, x[:, 0])

    variables = [word, position, *first, *head]
    variables += [v for p in blocks for pair in p.values() for v in pair]
    return variables, forward


def fit_mlp():
    return fit("fit_mlp", *perceptron(784, 512, 512, 10), cross_entropy)


def fit_cnn():
    return fit("fit_cnn", *cnn_network(), cross_entropy)


def fit_bert():
    return fit("fit_bert", *bert_network(), cross_entropy)


def predict_mlp():
    return predict("predict_mlp", *perceptron(784, 512, 512, 10))


def predict_cnn():
    return predict("predict_cnn", *cnn_network())


def predict_bert():
    return predict("predict_bert", *bert_network())


def predict_row():
    parameters, x = [dense(20, 64), dense(64, 64), dense(64, 3)], rows()
    forward = tf.function(lambda x: tf.nn.softmax(mlp(parameters, x)))

    def run(n):
        for i in range(n):
            i %= len(x)
            y = forward(tf.constant(x[i : i + 1])).numpy()
        return float(y.sum())

    return run, size(v for p in parameters for v in p)
