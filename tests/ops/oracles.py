"""What the ops must compute, in plain NumPy and written independently of khub."""

import math
from statistics import NormalDist

import numpy as np

from khub import config

erf = np.vectorize(math.erf)


def erfinv(y):
    return NormalDist().inv_cdf((y + 1) / 2) / math.sqrt(2)


def list_axis(function):
    """Return `function` that takes a list as `axis`, as the ops do."""

    def run(x, axis=None, **options):
        return function(x, axis=tuple(axis) if isinstance(axis, list) else axis, **options)

    return run


# --- arrays -------------------------------------------------------------------------------------
def box(start, sizes):
    return tuple(np.s_[int(s) : int(s) + n] for s, n in zip(start, sizes, strict=True))


def slice(x, start, sizes):
    return x[box(start, sizes)]


def slice_update(x, start, updates):
    x = x.copy()
    x[box(start, updates.shape)] = updates
    return x


def scatter(indices, values, shape):
    return scatter_update(np.zeros(shape, values.dtype), indices, values, "add")


def scatter_update(x, indices, updates, reduction=None):
    combine = {
        None: lambda old, new: new,
        "add": np.add,
        "max": np.maximum,
        "min": np.minimum,
        "mul": np.multiply,
    }[reduction]
    x = x.copy()
    for index, update in zip(map(tuple, indices), updates, strict=True):
        x[index] = combine(x[index], update)
    return x


def top_k(x, k):
    order = np.argsort(-x, -1)[..., :k]
    return np.take_along_axis(x, order, -1), order


def in_top_k(targets, predictions, k):
    return np.array([t in np.argsort(-p)[:k] for t, p in zip(targets, predictions, strict=True)])


def logsumexp(x, axis=None, keepdims=False):
    top = x.max(axis, keepdims=True)
    result = np.log(np.sum(np.exp(x - top), axis, keepdims=True)) + top
    return result if keepdims else np.squeeze(result, axis)


def normalize(x, axis=-1, order=2):
    return x / np.sum(np.abs(x) ** order, axis, keepdims=True) ** (1 / order)


def divide_no_nan(a, b):
    return np.divide(
        a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0
    )


def nextafter(a, b):
    kind = "float16" if a.dtype == "float16" else "float32"
    return np.nextafter(a.astype(kind), np.asarray(b, kind))


def nanargmax(x, **options):
    found = np.argmax(np.where(np.isnan(x), -np.inf, x), **options)
    return np.where(
        np.isnan(x).all(options.get("axis"), keepdims=options.get("keepdims", False)), -1, found
    )


def nanargmin(x, **options):
    return nanargmax(-x, **options)


def cross(a, b):
    def longer(v):
        return np.concatenate([v, np.zeros((*v.shape[:-1], 3 - v.shape[-1]))], -1)

    whole = np.cross(longer(a), longer(b))
    return whole[..., 2] if a.shape[-1] == b.shape[-1] == 2 else whole


def bincount(x, weights=None, minlength=0):
    rows = np.atleast_2d(x)
    length = max(minlength, *(int(n) + 1 for n in x.ravel()), 0)
    heavy = [None] * len(rows) if weights is None else np.atleast_2d(weights)
    counts = [np.bincount(r, w, length) for r, w in zip(rows, heavy, strict=True)]
    return counts[0] if x.ndim == 1 else np.stack(counts)


def unique(x, size=None, fill_value=0, axis=None, **asked):
    values, index, inverse, counts = np.unique(x, True, True, True, axis=axis)
    if size is not None:
        more = max(size - len(counts), 0)
        values = np.concatenate(
            [values[:size], np.full((more, *values.shape[1:]), fill_value, values.dtype)]
        )
        index = np.concatenate([index[:size], np.full(more, index[0])])
        counts = np.concatenate([counts[:size], np.zeros(more, int)])
    rest = dict(return_index=index, return_inverse=inverse, return_counts=counts)
    return [values, *(rest[name] for name in rest if asked.get(name))]


# --- activations and losses ---------------------------------------------------------------------
def selu(x):
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))


def gelu(x, approximate=True):
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * (1 + erf(x / math.sqrt(2))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


def softmax(x, axis=-1):
    e = np.exp(x - np.max(x, axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    shifted = x - np.max(x, axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def one_hot(x, classes, axis=-1, dtype=None):
    return np.moveaxis(np.arange(classes) == x[..., None], -1, axis)


def _log_shares(output, axis):
    shares = output / output.sum(axis, keepdims=True)
    return np.log(np.clip(shares, config.epsilon(), 1 - config.epsilon()))


def categorical(target, output, from_logits=False, axis=-1):
    return -np.sum(target * (log_softmax if from_logits else _log_shares)(output, axis), axis)


def sparse(target, output, from_logits=False, axis=-1):
    target = target.astype("int64").reshape(np.delete(output.shape, axis))
    hot = one_hot(target, output.shape[axis], axis)
    return categorical(hot, output, from_logits, axis)


def binary(target, output, from_logits=False):
    if from_logits:
        return target * np.logaddexp(0, -output) + (1 - target) * np.logaddexp(0, output)
    share = np.clip(output, *np.float32([config.epsilon(), 1 - config.epsilon()]))
    return -(target * np.log(share) + (1 - target) * np.log1p(-share))


# --- normalization and attention ----------------------------------------------------------------
def moments(x, axes, keepdims=False):
    axes = tuple(axes) if isinstance(axes, list) else axes
    return x.mean(axes, keepdims=keepdims), x.var(axes, keepdims=keepdims)


def batch_norm(x, mean, variance, axis, offset=0.0, scale=1.0, epsilon=1e-3):
    x = np.moveaxis(x, axis, -1)
    return np.moveaxis((x - mean) / np.sqrt(variance + epsilon) * scale + offset, -1, axis)


def layer_norm(x, gamma=None, beta=None, axis=-1, epsilon=1e-7):
    axis = tuple(axis) if isinstance(axis, list) else axis
    y = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon)
    return y * (1 if gamma is None else gamma) + (0 if beta is None else beta)


def group_norm(x, groups, gamma=1.0, beta=0.0, axis=-1, epsilon=1e-3):
    y = np.moveaxis(x, axis, -1)
    parts = y.reshape(*y.shape[:-1], groups, -1)
    over = tuple(a for a in range(1, parts.ndim) if a != parts.ndim - 2)
    parts = parts - parts.mean(over, keepdims=True)
    parts = parts / np.sqrt((parts * parts).mean(over, keepdims=True) + epsilon)
    return np.moveaxis(parts.reshape(y.shape) * gamma + beta, -1, axis)


def rms_norm(x, scale=1, axis=-1, epsilon=1e-7):
    return x / np.sqrt((x * x).mean(axis, keepdims=True) + epsilon) * scale


def attention(
    query,
    key,
    value,
    bias=0.0,
    mask=True,
    scale=None,
    is_causal=False,
    flash_attention=None,
    attn_logits_soft_cap=None,
):
    group = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, group, 2) for x in (key, value))
    scores = np.einsum("bthd,bshd->bhts", query, key)
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_logits_soft_cap:
        scores = np.tanh(scores / attn_logits_soft_cap) * attn_logits_soft_cap
    allowed = np.tri(*scores.shape[2:], dtype=bool) & mask if is_causal else mask
    scores = np.where(allowed, scores + bias, -1e30)
    return np.einsum("bhts,bshd->bthd", softmax(scores), value)


# --- convolution and pooling --------------------------------------------------------------------
def per_axis(value, count):
    return (value,) * count if isinstance(value, int) else tuple(value)


def channels_last(function):
    def run(x, *args, data_format=None, **options):
        if data_format == "channels_first":
            return np.moveaxis(function(np.moveaxis(x, 1, -1), *args, **options), -1, 1)
        return function(x, *args, **options)

    return run


def pixels(x, window, strides, padding, dilations, fill):
    """Yield each output place, the output's space, and the (batch, *window, n) part seen there."""
    if not isinstance(padding, str):
        zeros = [per_axis(around, 2) for around in padding]
        x, padding = np.pad(x, [(0, 0), *zeros, (0, 0)], constant_values=fill), "valid"
    outs, pads = [], []
    for size, k, s, d in zip(x.shape[1:-1], window, strides, dilations, strict=True):
        reach = (k - 1) * d + 1
        outs.append(math.ceil(size / s) if padding == "same" else (size - reach) // s + 1)
        total = max((outs[-1] - 1) * s + reach - size, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    for place in np.ndindex(*outs):
        ranges = [
            p * s + d * np.arange(k)
            for p, k, s, d in zip(place, window, strides, dilations, strict=True)
        ]
        yield place, outs, x[np.ix_(range(len(x)), *ranges, range(x.shape[-1]))]


@channels_last
def conv(x, kernel, strides=1, padding="valid", dilation_rate=1):
    count = kernel.ndim - 2
    window, inputs, filters = kernel.shape[:count], *kernel.shape[count:]
    groups = x.shape[-1] // inputs
    result = None
    for place, outs, part in pixels(
        x, window, per_axis(strides, count), padding, per_axis(dilation_rate, count), 0
    ):
        if result is None:
            result = np.zeros((len(x), *outs, filters))
        part = part.reshape(len(x), -1, groups, inputs)
        weights = kernel.reshape(-1, inputs, groups, filters // groups)
        y = np.einsum("bwgi,wigf->bgf", part, weights)
        result[(np.s_[:], *place)] = y.reshape(len(x), filters)
    return result


@channels_last
def conv_transpose(x, kernel, strides=1, padding="valid", output_padding=None, dilation_rate=1):
    count = kernel.ndim - 2
    strides, dilations = per_axis(strides, count), per_axis(dilation_rate, count)
    axes = list(zip(x.shape[1:-1], kernel.shape[:count], strides, dilations, strict=True))
    spread = [(n - 1) * s + (k - 1) * d + 1 + s for n, k, s, d in axes]
    result = np.zeros((len(x), *spread, kernel.shape[-2]))
    for place in np.ndindex(*x.shape[1:-1]):
        for tap in np.ndindex(*kernel.shape[:count]):
            at = [p * s + t * d for p, t, s, d in zip(place, tap, strides, dilations, strict=True)]
            result[(np.s_[:], *at)] += x[(np.s_[:], *place)] @ kernel[tap].T
    window = []
    for n, k, s, d in axes:
        reach = (k - 1) * d + 1
        if output_padding is not None:
            cut = reach // 2 if padding == "same" else 0
            out = (n - 1) * s + reach - 2 * cut + output_padding
        elif padding == "same":
            cut, out = max(reach - s, 0) // 2, n * s
        else:
            cut, out = 0, n * s + max(reach - s, 0)
        window.append(np.s_[cut : cut + out])
    return result[(np.s_[:], *window)]


def depthwise(x, kernel, **options):
    count = kernel.ndim - 2
    outs = [
        conv(x[..., i : i + 1], kernel[(np.s_[:],) * count + (np.s_[i : i + 1],)], **options)
        for i in range(x.shape[-1])
    ]
    return np.concatenate(outs, -1)


def separable(x, depth_kernel, point_kernel, **options):
    return conv(depthwise(x, depth_kernel, **options), point_kernel)


def pool(x, size, strides, padding, fill, reduce):
    count = x.ndim - 2
    sizes = per_axis(size, count)
    strides = sizes if strides is None else per_axis(strides, count)
    result = None
    for place, outs, part in pixels(x, sizes, strides, padding, (1,) * count, fill):
        if result is None:
            result = np.zeros((len(x), *outs, x.shape[-1]))
        result[(np.s_[:], *place)] = reduce(part, tuple(range(1, count + 1)))
    return result


@channels_last
def max_pool(x, size, strides=None, padding="valid"):
    return pool(x, size, strides, padding, -999, np.max)


@channels_last
def average_pool(x, size, strides=None, padding="valid"):
    return pool(x, size, strides, padding, np.nan, np.nanmean)


def adaptive(reduce):
    @channels_last
    def run(x, size):
        for axis, parts in enumerate(per_axis(size, x.ndim - 2), 1):
            n = x.shape[axis]
            bounds = [(i * n // parts, math.ceil((i + 1) * n / parts)) for i in range(parts)]
            x = np.stack([reduce(x.take(range(*b), axis), axis) for b in bounds], axis)
        return x

    return run


# --- patches and blocks of images ---------------------------------------------------------------
def _patches(sizes, kernel_size, dilation, padding, stride):
    kernel, dilation, padding, stride = (
        per_axis(v, 2) for v in (kernel_size, dilation, padding, stride)
    )
    axes = list(zip(sizes, kernel, dilation, padding, stride, strict=True))
    starts = [range(0, n + 2 * p - (k - 1) * d, s) for n, k, d, p, s in axes]
    for row in starts[0]:
        for column in starts[1]:
            yield np.ix_(
                *(
                    start + d * np.arange(k)
                    for start, (_, k, d, _, _) in zip((row, column), axes, strict=True)
                )
            )


def unfold(x, kernel_size, dilation=1, padding=0, stride=1):
    border = [(0, 0), (0, 0), *((p, p) for p in per_axis(padding, 2))]
    places = _patches(x.shape[2:], kernel_size, dilation, padding, stride)
    x = np.pad(x, border)
    return np.stack([x[(..., *place)].reshape(len(x), -1) for place in places], -1)


def fold(x, output_size, kernel_size, dilation=1, padding=0, stride=1):
    borders = per_axis(padding, 2)
    window = per_axis(kernel_size, 2)
    shape = [n + 2 * p for n, p in zip(output_size, borders, strict=True)]
    result = np.zeros((len(x), x.shape[1] // math.prod(window), *shape), x.dtype)
    for i, place in enumerate(_patches(output_size, kernel_size, dilation, padding, stride)):
        result[(..., *place)] += x[:, :, i].reshape(*result.shape[:2], *window)
    (top, left), (height, width) = borders, output_size
    return result[..., top : top + height, left : left + width]


def space_to_depth(x, b, data_format="channels_last"):
    if data_format == "channels_first":  # the offset inside a block varies fastest
        parts = [x[:, c, i::b, j::b] for c in range(x.shape[1]) for i in range(b) for j in range(b)]
        return np.stack(parts, 1)
    return np.concatenate([x[:, i::b, j::b] for i in range(b) for j in range(b)], -1)


def depth_to_space(x, b, data_format="channels_last"):
    first = data_format == "channels_first"
    shape = (len(x), x.shape[1] // b**2, x.shape[2] * b, x.shape[3] * b)
    shape = shape if first else (len(x), x.shape[1] * b, x.shape[2] * b, x.shape[3] // b**2)
    order = np.arange(math.prod(shape)).reshape(shape)
    result = np.zeros(math.prod(shape), x.dtype)
    result[space_to_depth(order, b, data_format).ravel()] = x.ravel()
    return result.reshape(shape)


def glu(x, axis=-1):
    value, gate = np.split(x, 2, axis)
    return value * sigmoid(gate)


def sparsemax(x, axis=-1):
    """The threshold by bisection: what lies above it sums to one."""
    low, high = x.min(axis, keepdims=True) - 1.0, x.max(axis, keepdims=True) * 1.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = np.maximum(x - middle, 0).sum(axis, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.maximum(x - low, 0)


# --- connectionist temporal classification: every path, one by one ------------------------------
def _labels(path, blank, merge=True):
    before = [None, *path[:-1]]
    return tuple(
        p for p, b in zip(path, before, strict=True) if p != blank and (not merge or p != b)
    )


def _by_labels(logits, time, blank, merge=True):
    """Return labels -> the probability of all paths of this length that give them."""
    shares = softmax(logits[:time].astype("float64"))
    found = {}
    for path in np.ndindex(*[logits.shape[-1]] * int(time)):
        share = math.prod(shares[t, p] for t, p in enumerate(path))
        labels = _labels(path, blank, merge)
        found[labels] = found.get(labels, 0) + share
    return found


def ctc_loss(target, logits, sizes, times, mask_index=0):
    losses = []
    for labels, row, size, time in zip(target, logits, sizes, times, strict=True):
        share = _by_labels(row, time, mask_index).get(tuple(labels[:size].tolist()), 0)
        losses.append(-math.log(share) if share else math.inf)
    return np.array(losses)


def _padded(rows, length):
    return np.array([[*row, *[-1] * (length - len(row))] for row in rows])


def ctc_greedy(logits, times, merge_repeated=True, mask_index=0):
    rows = [
        _labels(x[:t].argmax(-1), mask_index, merge_repeated)
        for x, t in zip(logits, times, strict=True)
    ]
    scores = [[-x[:t].max(-1).sum()] for x, t in zip(logits, times, strict=True)]
    return _padded(rows, logits.shape[1])[None], np.array(scores)


def ctc_beam(logits, times, strategy, beam_width, top_paths=1, merge_repeated=True, mask_index=0):
    best, scores = [], []
    for row, time in zip(logits, times, strict=True):
        found = _by_labels(row, time, mask_index, merge_repeated)
        order = sorted(found, key=lambda labels: -found[labels])[:top_paths]
        best.append(_padded(order, logits.shape[1]))
        scores.append([math.log(found[labels]) for labels in order])
    return np.stack(best, 1), np.array(scores)
