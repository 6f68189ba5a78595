"""Image layers that erase, mix images of a batch, or draw which other layers act."""

from functools import partial

from khub import dtypes, ops, random, tree
from khub.fields import Positive, PositiveInt
from khub.layers import image_color as colour
from khub.layers.image_color import ColourLayer, RangeSeedFormat, per_image
from khub.layers.image_geometry import RandomRotation, RandomShear, RandomTranslation
from khub.layers.image_layer import Factor, ImageLayer, Shared
from khub.saving.registry import snake_case


def _rectangles(layer, data, seed, shares):
    """Draw a rectangle for each image: masks that hold in it, and the share that each covers.

    shares: of the height and of the width, (batch,)
    -> bool (batch, height, width, 1), (batch, 1, 1, 1)
    """
    masks, covered = True, 1.0
    for axis, size, share in zip(layer.axes, layer.images_size(data), shares, strict=True):
        whole = ops.cast(size, "float32")
        length = ops.round(per_image(share) * whole)
        place = ops.floor(layer.factors(data, seed, (0.0, 1.0), 4) * (whole - length + 1))
        ends = [1, 1, 1, 1]
        ends[axis] = -1
        pixel = ops.reshape(ops.cast(ops.arange(size), "float32"), ends) - place
        masks = ops.logical_and(masks, ops.logical_and(pixel >= 0, pixel < length))
        covered = covered * length / whole
    return masks, covered


class RandomErasing(RangeSeedFormat):
    """Erases a rectangle of some images in training.  arXiv:1708.04896

    factor: (lower, upper) of the probability, drawn for each image; f means (0, f)
    scale: (lower, upper) of the squares of the parts of height and width that are erased
    fill_value: what is put there, None for noise
    """

    factor: Factor(0, 1, first=0) = 1.0
    scale: Factor(0, 1, first=0) = (0.02, 0.33)
    fill_value: float = None

    def drawn(self, data, seed):
        shares = [ops.sqrt(self.factors(data, seed, self.scale)) for _ in range(2)]
        drawn = {"apply_erasing": self.chances(data, seed)}
        drawn["batch_masks"] = _rectangles(self, data, seed, shares)[0]
        if self.fill_value is not None:
            return drawn | {"fill_value": ops.convert_to_tensor(self.fill_value, "float32")}
        noise = random.normal(self.images_shape(data), self.low, self.span, "float32", seed)
        return drawn | {"fill_value": self.clipped(noise)}

    def change(self, x, apply_erasing, batch_masks, fill_value):
        return ops.where(ops.logical_and(batch_masks, apply_erasing), fill_value, x)


class _Mixing(ImageLayer):
    """What gives each image a partner of the batch, and mixes both."""

    def drawn(self, data, seed):
        """The number of each image's partner: those of the batch in a random order."""
        return {"permutation_order": ops.argsort(self.factors(data, seed, (0.0, 1.0)))}

    def shares(self, data, seed, alpha):
        """Draw each image's share in the mixture from Beta(alpha, alpha).  -> (batch,)"""
        shape = (2, self.images_shape(data)[0])
        one, other = ops.unstack(random.gamma(shape, alpha, "float32", seed), 2)
        return (one + 1e-30) / (one + other + 2e-30)  # both may be 0 where alpha is small

    def on_images(self, images, transformation):
        def run(part, transformation):
            partners = ops.take(images, transformation["permutation_order"], 0)
            mixed = self.mix(self.in_float(part), self.in_float(partners), transformation)
            return self.fit_dtype(mixed)

        return ops.image.in_parts(run, colour._PART, images, transformation)

    def on_labels(self, labels, transformation):
        name = ops.dtype(labels)
        if len(labels.shape) == 1 and not name.startswith(("float", "bfloat")):
            raise ValueError(
                f"{self.name} mixes labels, which must be one-hot or floats, got integers of the "
                f"shape {tuple(labels.shape)} ({name}); use keras.ops.one_hot."
            )
        labels = self.in_float(labels)
        shape = (-1, *[1] * (len(labels.shape) - 1))
        weight = ops.cast(ops.reshape(transformation["mix_weight"], shape), labels.dtype)
        partners = ops.take(labels, transformation["permutation_order"], 0)
        return labels * weight + partners * (1 - weight)


class MixUp(_Mixing):
    """Blends each image and its labels with another one of the batch in training.

    Boxes of both are kept.  arXiv:1710.09412, arXiv:1902.04103
    alpha: the shares are drawn from Beta(alpha, alpha)
    """

    alpha: Positive = 0.2
    options: Shared("data_format", "seed")

    def drawn(self, data, seed):
        weight = self.shares(data, seed, self.alpha)
        return {"mix_weight": weight} | super().drawn(data, seed)

    def mix(self, x, partners, transformation):
        weight = ops.cast(per_image(transformation["mix_weight"]), x.dtype)
        return partners + (x - partners) * weight

    on_segmentation_masks = _Mixing.on_labels

    def on_bounding_boxes(self, boxes, transformation):
        order = transformation["permutation_order"]
        return tree.map_structure(lambda x: ops.concatenate([x, ops.take(x, order, 0)], 1), boxes)


class CutMix(_Mixing):
    """Puts a rectangle of another image of the batch into each one in training.

    Labels are mixed by area.  arXiv:1905.04899
    factor: (lower, upper) of alpha; the area is drawn from Beta(alpha, alpha); f means (0, f)
    """

    factor: Factor(0, 1, first=0) = 1.0
    seed: int = None

    def drawn(self, data, seed):
        alpha = ops.maximum(self.factors(data, seed, self.factor), 1e-2)
        side = ops.sqrt(1 - self.shares(data, seed, alpha))
        masks, covered = _rectangles(self, data, seed, (side, side))
        return {"batch_masks": masks, "mix_weight": 1 - covered} | super().drawn(data, seed)

    def mix(self, x, partners, transformation):
        return ops.where(transformation["batch_masks"], partners, x)

    def on_segmentation_masks(self, masks, transformation):
        inside = ops.take(transformation["batch_masks"], [0], self.channel_axis)
        inside = ops.squeeze(inside, self.channel_axis) if len(masks.shape) == 3 else inside
        return ops.where(inside, ops.take(masks, transformation["permutation_order"], 0), masks)

    def transform_bounding_boxes(self, bounding_boxes, transformation, training=True):
        raise NotImplementedError(
            f"{self.name}: CutMix is not defined for bounding boxes; use MixUp, or leave them out."
        )


# --- policies ------------------------------------------------------------------------------------
WARPS = RandomShear, RandomTranslation, RandomRotation
EXTRA = colour.RandomBrightness, colour.RandomColorDegeneration
EXTRA += colour.RandomContrast, colour.RandomSharpness
MORE = colour.RandomPosterization, colour.Solarization, colour.AutoContrast, colour.Equalization


class _Policy(ColourLayer):
    """What draws which of its layers act, for all images of a batch alike."""

    options: Shared("interpolation", "seed")
    all_ops = True

    def setup(self):
        super().setup()
        kinds = (*WARPS, *(EXTRA if self.all_ops else ()), *MORE)
        self._names = [snake_case(kind.__name__) for kind in kinds]
        same = {field[0] for field in _Policy._fields} | {"value_range"}
        for name, kind in zip(self._names, kinds, strict=True):
            own = [field[0] for field in kind._fields]
            options = {n: getattr(self, n) for n in own if n in same}
            options |= {n: self.factor for n in own if n.endswith("factor")}
            if kind is colour.RandomPosterization:  # a number of bits
                options["factor"] = [max(1, int(8 * side)) for side in self.factor]
            if dtypes.is_float(self.compute_dtype):
                options["dtype"] = self.compute_dtype
            setattr(self, name, kind(**options))

    def draw_all(self, data, seed):
        """A transformation of each layer, by its name."""
        return {
            name: getattr(self, name).get_random_transformation(data, seed=seed)
            for name in self._names
        }

    def apply(self, chosen, part, data, transforms):
        """What the layer of this number does to a part of the data; none does nothing."""
        branches = [
            partial(getattr(getattr(self, name), f"transform_{part}"), data, transforms[name])
            for name in self._names
        ]
        return ops.switch(chosen, [*branches, lambda: data])


class RandAugment(_Policy):
    """Applies some of eleven layers in training, drawn for each batch.  arXiv:1909.13719

    num_ops: how many, one after the other; factor: (lower, upper) of their strength, f means (0, f)
    """

    value_range: Shared("value_range")
    num_ops: PositiveInt = 2
    factor: Factor(0, 1, first=0) = 0.5

    def drawn(self, data, seed):
        chosen = random.randint((self.num_ops,), 0, len(self._names), "int32", seed)
        return {"transforms": self.draw_all(data, seed), "layer_idxes": chosen}

    def _applied(part):
        def transform(self, data, transformation):
            for i in range(self.num_ops):
                chosen = transformation["layer_idxes"][i]
                data = self.apply(chosen, part, data, transformation["transforms"])
            return data

        return transform

    adjust = _applied("images")
    on_bounding_boxes = _applied("bounding_boxes")
    on_segmentation_masks = _applied("segmentation_masks")


class AugMix(_Policy):
    """Mixes each image in training with chains of layers drawn for the batch.  arXiv:1912.02781

    num_chains, chain_depth: how many chains, and how many layers each has at most
    factor: (lower, upper) of their strength, f means (0, f)
    alpha: of the Dirichlet and Beta distributions that the shares are drawn from
    all_ops: whether brightness, color degeneration, contrast and sharpness may be among the layers
    """

    value_range: Shared("value_range")
    num_chains: PositiveInt = 3
    chain_depth: PositiveInt = 3
    factor: Factor(0, 1, first=0) = 0.3
    alpha: Positive = 1.0
    all_ops: bool = True

    def drawn(self, data, seed):
        count, size = len(self._names), (self.num_chains, self.chain_depth)
        depth = random.randint((size[0], 1), 1, size[1] + 1, "int32", seed)
        chosen = random.randint(size, 0, count, "int32", seed)
        chosen = ops.where(ops.arange(size[1]) < depth, chosen, count)  # none
        shares = random.gamma(size[:1], self.alpha, "float32", seed) + 1e-30

        def step(number):
            return {"layer_name": number, "transformation": self.draw_all(data, seed)}

        return {
            "chain_mixing_weights": shares / ops.sum(shares),
            "weight_sample": random.beta((), self.alpha, self.alpha, "float32", seed),
            "chain_transforms": [list(map(step, ops.unstack(row))) for row in ops.unstack(chosen)],
        }

    def adjust(self, x, transformation):
        weight = ops.cast(transformation["weight_sample"], x.dtype)
        shares = ops.cast(transformation["chain_mixing_weights"], x.dtype) * (1 - weight)
        mixed = x * weight
        for i, chain in enumerate(transformation["chain_transforms"]):
            y = x
            for step in chain:
                name, drawn = step["layer_name"], step["transformation"]
                if isinstance(name, str):  # one layer, and what it drew
                    y = getattr(self, name).transform_images(y, drawn)
                else:
                    y = self.apply(name, "images", y, drawn)
            mixed = mixed + y * shares[i]
        return mixed
