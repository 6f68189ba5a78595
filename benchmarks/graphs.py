"""Functional graphs of the size of ResNet50 and EfficientNetB7, for `benchmarks.layers`."""


def resnet(k):
    """The 50-layer residual network: arXiv:1512.03385, table 1."""
    layers = k.layers

    def unit(x, filters, size, stride=1, activation=True):
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if activation else x

    inputs = k.Input((224, 224, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(unit(inputs, 64, 7, 2))
    for stage, (filters, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            shortcut = x if block else unit(x, 4 * filters, 1, stride, False)
            y = unit(unit(x, filters, 1, stride), filters, 3)
            x = layers.Activation("relu")(
                layers.Add()([shortcut, unit(y, 4 * filters, 1, 1, False)])
            )
    x = layers.GlobalAveragePooling2D()(x)
    return k.Model(inputs, layers.Dense(1000, activation="softmax")(x))


# expansion, channels, depth, stride, kernel: arXiv:1905.11946, table 1; B7 is 2.0 wide, 3.1 deep
STAGES = [
    (1, 32, 4, 1, 3),
    (6, 48, 7, 2, 3),
    (6, 80, 7, 2, 5),
    (6, 160, 10, 2, 3),
    (6, 224, 10, 1, 5),
    (6, 384, 13, 2, 5),
    (6, 640, 4, 1, 3),
]


def efficientnet(k):
    """EfficientNetB7 with squeeze-and-excitation and stochastic depth as plain dropout."""
    layers = k.layers

    def normalized(x, activation=True):
        x = layers.BatchNormalization()(x)
        return layers.Activation("swish")(x) if activation else x

    inputs = k.Input((600, 600, 3))
    x = normalized(layers.Conv2D(64, 3, 2, padding="same", use_bias=False)(inputs))
    width = 64
    for expansion, channels, depth, stride, size in STAGES:
        for block in range(depth):
            start, inner = x, width * expansion
            if expansion > 1:
                x = normalized(layers.Conv2D(inner, 1, use_bias=False)(x))
            step = 1 if block else stride
            x = normalized(layers.DepthwiseConv2D(size, step, padding="same", use_bias=False)(x))
            gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
            gate = layers.Conv2D(max(1, width // 4), 1, activation="swish")(gate)
            gate = layers.Conv2D(inner, 1, activation="sigmoid")(gate)
            x = layers.Multiply()([x, gate])
            x = normalized(layers.Conv2D(channels, 1, use_bias=False)(x), False)
            if block:
                x = layers.Add()([layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(x), start])
            width = channels
    x = normalized(layers.Conv2D(2560, 1, use_bias=False)(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return k.Model(inputs, layers.Dense(1000, activation="softmax")(x))


GRAPHS = {"build_resnet50": resnet, "build_efficientnet_b7": efficientnet}
