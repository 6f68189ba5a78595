"""What the networks of the hub are drawn with: functions (symbolic x, ..., name) -> symbolic."""

from khub import initializers, layers, ops
from khub.backend.windows import channels_first


def channel_axis():
    """The axis of channels in a batch of images, as `config.image_data_format()` says."""
    return 1 if channels_first(None) else -1


def channels_last(x):
    """x with its channels behind, as transformers need them, wherever the network's are."""
    return layers.Permute((2, 3, 1))(x) if channel_axis() == 1 else x


def placed(x):
    """The opposite: channels where the network's are."""
    return layers.Permute((3, 1, 2))(x) if channel_axis() == 1 else x


def width_of(x):
    """The number of channels."""
    return x.shape[channel_axis()] if len(x.shape) == 4 else x.shape[-1]


def pad(x, before, after=None):
    """Zeros around height and width."""
    sizes = (before, before if after is None else after)
    return layers.ZeroPadding2D((sizes, sizes))(x) if any(sizes) else x


def conv(x, width, kernel=1, stride=1, groups=1, bias=False, name=None, zeros=None, dilation=1):
    """A convolution between zeros as PyTorch puts them: kernel // 2 on every side.

    zeros: where it strides, "same" as Keras puts them, or their numbers (before, after)
    """
    padding = "same"
    if stride > 1 and kernel > 1 and zeros != "same":  # "same" has more zeros at the end
        padding = [zeros or kernel // 2] * 2
    options = dict(padding=padding, use_bias=bias, name=name, dilation_rate=dilation)
    if groups == width == width_of(x) and groups > 1:
        start = initializers.VarianceScaling(2.0, "fan_in", "truncated_normal")
        options["depthwise_initializer"] = start
        return layers.DepthwiseConv2D(kernel, stride, **options)(x)
    start = initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
    return layers.Conv2D(width, kernel, stride, groups=groups, kernel_initializer=start, **options)(
        x
    )


def batch_norm(x, name, epsilon=1e-5, momentum=0.9):
    return layers.BatchNormalization(channel_axis(), momentum, epsilon, name=name)(x)


def layer_norm(x, name, epsilon=1e-6, axis=-1):
    return layers.LayerNormalization(axis, epsilon, name=name)(x)


def active(x, activation):
    """An activation by name; None leaves x as it is."""
    return x if activation is None else layers.Activation(activation)(x)


def unit(x, width, kernel, stride, names, activation=None, epsilon=1e-5, **options):
    """A convolution, normalized and activated.  names: of the two layers"""
    x = conv(x, width, kernel, stride, name=names[0], **options)
    return active(batch_norm(x, names[1], epsilon), activation)


def max_pool(x, positive=True):
    """Maximum of 3 x 3 at stride 2; positive: no value is below 0, so zeros may lie around them."""
    if positive:
        return layers.MaxPooling2D(3, 2)(pad(x, 1))
    sizes = [(0, 0), (1, 1), (1, 1)]
    sizes.insert(1 if channel_axis() == 1 else 3, (0, 0))
    return layers.MaxPooling2D(3, 2)(ops.pad(x, sizes, constant_values=float("-inf")))


def drop_path(x, rate):
    """Leave whole samples of a branch out in training.  Huang et al. 2016, arXiv:1603.09382"""
    return layers.Dropout(rate, (None, *(1,) * (len(x.shape) - 1)))(x) if rate else x


def squeeze_excite(x, width, name, fc=("fc1", "fc2"), activation="relu", gate="sigmoid"):
    """x * gate(W2 activation(W1 mean(x))), W1 to `width`.  Hu et al. 2017, arXiv:1709.01507"""
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = active(conv(s, width, bias=True, name=f"{name}.{fc[0]}"), activation)
    s = active(conv(s, width_of(x), bias=True, name=f"{name}.{fc[1]}"), gate)
    return layers.Multiply()([x, s])


def divisible(width, by=8, least=0.9):
    """The multiple of `by` nearest to width, or the next one where that is below `least` of it."""
    near = max(by, int(width + by / 2) // by * by)
    return near + by if near < least * width else near
