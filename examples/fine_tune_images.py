"""Fine-tune a small pretrained MobileNet on images, against the same network from random weights.

python examples/fine_tune_images.py train_2000.npz      # x: uint8 (n, height, width, 3), y: classes
"""

import argparse

import numpy as np

import khub
from khub import cv

PRESET = "mobilenet_0.25_224_imagenet"


def learn(title, load_weights, train, test, options):
    """First the head alone, then all of it.  -> accuracy on images it has not seen"""
    khub.utils.set_random_seed(0)
    classes = int(train[1].max()) + 1
    model = cv.ImageClassifier.from_preset(PRESET, load_weights, num_classes=classes)
    model.preprocessor.image_size, model.preprocessor.resize = (options.size, options.size), None
    model.backbone.trainable, frozen = False, options.frozen if load_weights else 0
    model.compile(optimizer=khub.optimizers.Adam(3e-3))
    model.fit(*train, batch_size=options.batch, epochs=frozen, verbose=0)

    model.backbone.trainable = True
    for layer in model.backbone.layers:
        if isinstance(layer, khub.layers.BatchNormalization):
            layer.trainable = not load_weights  # few images would spoil what it knows
            layer.momentum = 0.9  # and are too few to forget its first averages at 0.99
    rest = options.frozen + options.epochs - frozen
    rate, steps = 3e-4 if load_weights else 3e-3, rest * len(train[0]) // options.batch
    rate = khub.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(optimizer=khub.optimizers.AdamW(rate, weight_decay=0.05))
    model.fit(*train, batch_size=options.batch, epochs=rest, verbose=0)
    accuracy = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    print(f"{title}: accuracy {accuracy:.1%} on {len(test[0])} images")
    return accuracy


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help=".npz with x and y")
    parser.add_argument("--size", type=int, default=96, help="images are resized to this")
    parser.add_argument("--frozen", type=int, default=3, help="epochs of the head alone")
    parser.add_argument("--epochs", type=int, default=7, help="epochs of the whole")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(argv)
    with np.load(options.data) as file:
        x, y = file["x"], file["y"].astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    seen, unseen = order[len(x) // 5 :], order[: len(x) // 5]
    train, test = (x[seen], y[seen]), (x[unseen], y[unseen])
    both = {"pretrained": True, "random start": False}
    return {title: learn(title, load, train, test, options) for title, load in both.items()}


if __name__ == "__main__":
    main()
