"""YOLOv8n written by hand for PyTorch, and of Keras' layers: what benchmarks/cv.py compares with.

Nobody folds the normalizations into the convolutions.
"""

import numpy as np

CLASSES, BINS = 80, 16
WIDTHS, BLOCKS = (16, 32, 64, 128, 256), (1, 2, 2, 1)
NECK = (64, 128, 256)


# --- PyTorch, by hand ----------------------------------------------------------------------------
def native(widths=WIDTHS, blocks=BLOCKS, neck=NECK, classes=CLASSES):
    """The network of modules under the public names; images first in channels -> raw outputs."""
    import torch
    from torch import nn

    class Unit(nn.Module):
        def __init__(self, inputs, outputs, kernel=1, stride=1):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
            self.act = nn.SiLU(inplace=True)

        def forward(self, x):
            return self.act(self.bn(self.conv(x)))

    class Block(nn.Module):
        def __init__(self, width, shortcut):
            super().__init__()
            self.cv1, self.cv2 = Unit(width, width, 3), Unit(width, width, 3)
            self.shortcut = shortcut

        def forward(self, x):
            y = self.cv2(self.cv1(x))
            return x + y if self.shortcut else y

    class C2f(nn.Module):
        def __init__(self, inputs, outputs, count, shortcut):
            super().__init__()
            self.cv1 = Unit(inputs, outputs)
            self.cv2 = Unit(outputs // 2 * (2 + count), outputs)
            self.m = nn.ModuleList(Block(outputs // 2, shortcut) for _ in range(count))

        def forward(self, x):
            kept = list(self.cv1(x).chunk(2, 1))
            for block in self.m:
                kept.append(block(kept[-1]))
            return self.cv2(torch.cat(kept, 1))

    class Pyramid(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.cv1, self.cv2 = Unit(width, width // 2), Unit(2 * width, width)
            self.m = nn.MaxPool2d(5, 1, 2)

        def forward(self, x):
            kept = [self.cv1(x)]
            for _ in range(3):
                kept.append(self.m(kept[-1]))
            return self.cv2(torch.cat(kept, 1))

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            side, score = max(16, neck[0] // 4, 4 * BINS), max(neck[0], min(classes, 100))

            def branch(width, outputs):
                return nn.ModuleList(
                    nn.Sequential(
                        Unit(n, width, 3), Unit(width, width, 3), nn.Conv2d(width, outputs, 1)
                    )
                    for n in neck
                )

            self.cv2, self.cv3 = branch(side, 4 * BINS), branch(score, classes)

        def forward(self, levels):
            def all_points(branch):
                parts = [head(x).flatten(2) for head, x in zip(branch, levels)]
                return torch.cat(parts, 2).transpose(1, 2)

            return {"boxes": all_points(self.cv2), "classes": all_points(self.cv3)}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            steps, last, count = [Unit(3, widths[0], 3, 2)], widths[0], blocks[0]
            for width, n in zip(widths[1:], blocks):
                steps += [Unit(last, width, 3, 2), C2f(width, width, n, True)]
                last = width
            twice, none = nn.Upsample(scale_factor=2), nn.Identity()
            small, medium, large = neck
            steps += [Pyramid(last), twice, none, C2f(last + widths[3], medium, count, False)]
            steps += [twice, none, C2f(medium + widths[2], small, count, False)]
            steps += [Unit(small, small, 3, 2), none, C2f(small + medium, medium, count, False)]
            steps += [Unit(medium, medium, 3, 2), none, C2f(medium + last, large, count, False)]
            self.model = nn.Sequential(*steps, Heads())

        def forward(self, x):
            step, kept = self.model, {}
            for i in range(10):
                x = kept[i] = step[i](x)
            middle = step[12](torch.cat([step[10](x), kept[6]], 1))
            small = step[15](torch.cat([step[13](middle), kept[4]], 1))
            medium = step[18](torch.cat([step[16](small), middle], 1))
            large = step[21](torch.cat([step[19](medium), x], 1))
            return step[22]([small, medium, large])

    return Network().eval()


# --- Keras, of the same layers -------------------------------------------------------------------
def keras_network(k, size):
    layers = k.layers

    def unit(x, width, kernel=1, stride=1):
        if stride > 1:
            x, padding = layers.ZeroPadding2D(kernel // 2)(x), "valid"
        else:
            padding = "same"
        x = layers.Conv2D(width, kernel, stride, padding, use_bias=False)(x)
        return layers.Activation("silu")(layers.BatchNormalization(-1, 0.97, 1e-3)(x))

    def joined(parts):
        return layers.Concatenate()(parts)

    def c2f(x, width, count, shortcut):
        kept = list(k.ops.split(unit(x, width), 2, axis=-1))
        for _ in range(count):
            y = unit(unit(kept[-1], width // 2, 3), width // 2, 3)
            kept.append(layers.Add()([kept[-1], y]) if shortcut else y)
        return unit(joined(kept), width)

    image = k.Input((size, size, 3))
    x, levels = unit(image, WIDTHS[0], 3, 2), []
    for width, count in zip(WIDTHS[1:], BLOCKS):
        x = c2f(unit(x, width, 3, 2), width, count, True)
        levels.append(x)
    kept = [unit(x, WIDTHS[-1] // 2)]
    for _ in range(3):
        kept.append(layers.MaxPooling2D(5, 1, "same")(kept[-1]))
    top, (_, p3, p4, _) = unit(joined(kept), WIDTHS[-1]), levels
    middle = c2f(joined([layers.UpSampling2D()(top), p4]), NECK[1], BLOCKS[0], False)
    small = c2f(joined([layers.UpSampling2D()(middle), p3]), NECK[0], BLOCKS[0], False)
    medium = c2f(joined([unit(small, NECK[0], 3, 2), middle]), NECK[1], BLOCKS[0], False)
    large = c2f(joined([unit(medium, NECK[1], 3, 2), top]), NECK[2], BLOCKS[0], False)

    def head(width, outputs):
        found = []
        for x in (small, medium, large):
            x = layers.Conv2D(outputs, 1)(unit(unit(x, width, 3), width, 3))
            found.append(layers.Reshape((-1, outputs))(x))
        return layers.Concatenate(axis=1)(found)

    return k.Model(image, {"boxes": head(64, 4 * BINS), "classes": head(80, CLASSES)})


# --- the contenders ------------------------------------------------------------------------------
def khub_network(size):
    from khub import cv

    backbone = cv.YOLOV8Backbone.variant("yolo_v8_n", image_shape=(size, size, 3))
    return cv.YOLOV8Detector(backbone, CLASSES)


def contenders(size, backend):
    """Side -> function that runs the network on an image; on torch both memory layouts."""
    x = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    ours = khub_network(size)
    if backend != "torch":
        import keras

        theirs = keras_network(keras, size)
        assert theirs.count_params() == ours.count_params()
        models = {"khub": ours.network, "keras": theirs}
        return {
            side: (lambda m=m: sum(y.sum() for y in m.predict(x, verbose=0).values()))
            for side, m in models.items()
        }
    import torch

    import khub

    torch.set_num_threads(1)
    forward, model, given = khub.jit(lambda x: ours(x, training=False)), native(), torch.tensor(x)
    plain = given.permute(0, 3, 1, 2).contiguous()
    channels_last = native().to(memory_format=torch.channels_last)
    assert sum(p.numel() for p in model.parameters()) == sum(
        int(np.prod(v.shape)) for v in ours.trainable_variables
    )

    def inference(function, x):
        with torch.inference_mode():
            return sum(y.sum().item() for y in function(x).values())

    return {
        "khub": lambda: inference(forward, given),
        "plain": lambda: inference(model, plain),
        "channels_last": lambda: inference(channels_last, given.permute(0, 3, 1, 2)),
    }
