"""The programs of khub and of Keras: the same source, `keras` is either package.

Each makes a (run, parameters) pair: `run(n)` does n iterations and returns a number they computed.
"""

from .cells import BERT, CELLS, STACK, fit_data, matrices, rows, stack_batch


def eager_ops(keras):
    ops = keras.ops
    pairs = [(ops.convert_to_tensor(a), ops.convert_to_tensor(b), a.shape) for a, b in matrices()]

    def twenty(a, b, shape):
        rows, columns = shape
        c = ops.add(a, 1.5)
        d = ops.multiply(a, c)
        e = ops.subtract(d, a)
        f = ops.transpose(b)
        g = ops.add(e, f)
        h = ops.matmul(g, b)
        i = ops.exp(ops.multiply(h, 0.01))
        j = ops.sum(i, axis=-1, keepdims=True)
        k = ops.divide(i, j)
        m = ops.matmul(k, a)
        n = ops.reshape(m, (columns, rows))
        o = ops.maximum(n, b)
        p = ops.tanh(o)
        q = ops.sqrt(ops.square(p))
        r = ops.relu(ops.negative(q))
        s = ops.concatenate([r, q], axis=0)
        return ops.mean(s)

    def run(n):
        for _ in range(n):
            for a, b, shape in pairs:
                last = twenty(a, b, shape)
        return float(last)

    return run, 0


def functional_call(keras):
    inputs = hidden = keras.Input((16,))
    for _ in range(10):
        hidden = keras.layers.Dense(16, activation="relu")(hidden)
    model = keras.Model(inputs, hidden)
    x = keras.ops.ones((8, 16))

    def run(n):
        for _ in range(n):
            y = model(x)
        return float(keras.ops.sum(y))

    return run, model.count_params()


def fit(keras, name, model, loss, **options):
    batch, longest = CELLS[name].batch, CELLS[name].iterations
    x, y = fit_data(name, longest)
    model.compile(optimizer=keras.optimizers.Adam(), loss=loss, **options)

    def run(n):
        size = n * batch
        history = model.fit(
            x[:size], y[:size], batch_size=batch, epochs=1, verbose=0, shuffle=False
        )
        return float(history.history["loss"][-1])

    return run, model.count_params()


def predict(name, model):
    batch = CELLS[name].batch
    x, _ = fit_data(name, CELLS[name].iterations)

    def run(n):
        return float(model.predict(x[: n * batch], batch_size=batch, verbose=0).mean())

    return run, model.count_params()


def cross_entropy(keras):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def perceptron(keras, first, *sizes, last=None):
    hidden = [keras.layers.Dense(size, activation="relu") for size in sizes[:-1]]
    head = keras.layers.Dense(sizes[-1], activation=last)
    return keras.Sequential([keras.Input((first,)), *hidden, head])


def fit_tiny(keras):
    return fit(keras, "fit_tiny", perceptron(keras, 8, 16, 1), "mse")


def fit_grouped(keras):
    model = perceptron(keras, 8, 16, 1)
    return fit(keras, "fit_grouped", model, "mse", steps_per_execution=32)


def mlp(keras):
    return perceptron(keras, 784, 512, 512, 10)


def cnn(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def bert(keras):
    layers, ops = keras.layers, keras.ops
    width, heads = BERT["width"], BERT["heads"]

    class Embed(layers.Layer):
        def __init__(self):
            super().__init__()
            self.word = layers.Embedding(BERT["vocabulary"], width)
            self.position = layers.Embedding(BERT["length"], width)
            self.norm = layers.LayerNormalization(epsilon=1e-12)

        def call(self, tokens):
            return self.norm(self.word(tokens) + self.position(ops.arange(BERT["length"])))

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (layers.Dense(width) for _ in range(4))
            self.norm1 = layers.LayerNormalization(epsilon=1e-12)
            self.up = layers.Dense(BERT["hidden"], activation="gelu")
            self.down = layers.Dense(width)
            self.norm2 = layers.LayerNormalization(epsilon=1e-12)

        def call(self, x):
            split = (-1, BERT["length"], heads, width // heads)
            q, k, v = (ops.reshape(f(x), split) for f in (self.query, self.key, self.value))
            attended = ops.reshape(ops.dot_product_attention(q, k, v), (-1, BERT["length"], width))
            x = self.norm1(x + self.out(attended))
            return self.norm2(x + self.down(self.up(x)))

    tokens = keras.Input((BERT["length"],), dtype="int32")
    x = Embed()(tokens)
    for _ in range(BERT["depth"]):
        x = Block()(x)
    return keras.Model(tokens, layers.Dense(BERT["classes"])(x[:, 0]))


def fit_mlp(keras):
    return fit(keras, "fit_mlp", mlp(keras), cross_entropy(keras))


def fit_cnn(keras):
    return fit(keras, "fit_cnn", cnn(keras), cross_entropy(keras))


def fit_bert(keras):
    return fit(keras, "fit_bert", bert(keras), cross_entropy(keras))


def predict_mlp(keras):
    return predict("predict_mlp", mlp(keras))


def predict_cnn(keras):
    return predict("predict_cnn", cnn(keras))


def predict_bert(keras):
    return predict("predict_bert", bert(keras))


def called(khub):
    """A row at a time by a direct call, compiled as `predict` is, its result in NumPy."""
    x, model = rows(), perceptron(khub, 20, 64, 64, 3, last="softmax")
    call = khub.jit(lambda x: model(x, training=False))

    def run(n):
        for i in range(n):
            i %= len(x)
            y = khub.ops.convert_to_numpy(call(khub.ops.convert_to_tensor(x[i : i + 1])))
        return float(y.sum())

    return run, model.count_params()


def predict_row(keras):
    x, model = rows(), perceptron(keras, 20, 64, 64, 3, last="softmax")

    def run(n):
        for i in range(n):
            i %= len(x)
            y = model.predict(x[i : i + 1], verbose=0)
        return float(y.sum())

    return run, model.count_params()


predict_called = predict_row


def jit_60(khub):
    """Only khub: a step over variables, compiled once with its state donated."""
    ops, width = khub.ops, STACK["width"]
    stack = [khub.layers.Dense(width, activation="relu") for _ in range(STACK["depth"])]
    for layer in stack:
        layer.build((None, width))
    weights = [w for layer in stack for w in layer.trainable_variables]
    optimizer = khub.optimizers.SGD(1e-4, momentum=0.9)

    def loss_of(x, y):
        for layer in stack:
            x = x + 0.1 * layer(x)
        return ops.mean(ops.square(x - y))

    @khub.jit
    def step(x, y):
        loss, gradients = khub.value_and_grad(loss_of, weights)(x, y)
        optimizer.apply(gradients, weights)
        return loss

    x, y = (ops.convert_to_tensor(a) for a in stack_batch())

    def run(n):
        for _ in range(n):
            loss = step(x, y)
        return float(loss)

    return run, sum(int(w.numpy().size) for w in weights)
