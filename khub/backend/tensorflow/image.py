"""Images: sizes and projections by TensorFlow's own kernels, differentiable to every order."""

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # not public

from khub.backend.tensorflow.convert import cast, raw, shape, vector

_KERNELS = {"linear": "triangle", "cubic": "keyscubic"}


def _in_xla():
    """Whether XLA compiles this graph: it lacks most kernels of images."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def resize_pixels(images, size, method, antialias):
    smooth = antialias or method != "linear"
    # the kernel for the nearest rounds n * (1 / m) where the op rounds n / m
    if images.dtype is not tf.float32 or method == "nearest" or smooth and _in_xla():
        return NotImplemented
    sizes, size = shape(images), vector(size)
    x = raw.Reshape(images, vector((-1, *sizes[-3:])))
    if smooth:
        scale = raw.RealDiv(cast(size, "float32"), cast(vector(sizes[-3:-1]), "float32"))
        options = scale, raw.ZerosLike(scale), _KERNELS.get(method, method), antialias
        x = _linear(raw.ScaleAndTranslate, raw.ScaleAndTranslateGrad, x, size, options)
    else:  # without align_corners, with half_pixel_centers
        x = _linear(raw.ResizeBilinear, raw.ResizeBilinearGrad, x, size, (False, True))
    return raw.Reshape(x, vector((*sizes[:-3], *shape(x)[1:])))


def _linear(kernel, transposed, x, size, options):
    """A linear kernel of x; TensorFlow has its gradient, but not that of the gradient.

    The kernels see constants: else forward mode looks for what TensorFlow has.
    """

    @tf.custom_gradient
    def there(y):
        return kernel(raw.StopGradient(y), size, *options), back

    @tf.custom_gradient
    def back(y):
        return transposed(raw.StopGradient(y), x, *options), there

    return there(x)


def project_images(images, factors, interpolation, fill_mode, fill_value):
    # the kernel for the nearest rounds halves away from zero, and it wraps after size - 1 pixels
    known = interpolation == "bilinear" and fill_mode in ("constant", "nearest", "reflect")
    if images.dtype is not tf.float32 or not known or _in_xla():
        return NotImplemented

    @tf.custom_gradient
    def project(*sources):
        def gradient(upstream):
            return _slopes(sources, upstream, interpolation, fill_mode)

        x, transforms, fill = map(raw.StopGradient, sources)
        options = vector(shape(x)[1:3]), fill, "BILINEAR", fill_mode.upper()
        return raw.ImageProjectiveTransformV3(x, transforms, *options), gradient

    return project(images, *(tf.cast(x, tf.float32) for x in (factors, fill_value)))


@tf.function(autograph=False, reduce_retracing=True)
def _slopes(sources, upstream, interpolation, fill_mode):
    """The gradients of the op's body; in a graph, as forward mode sees no tape in a gradient."""
    found = project_images.body(*sources[:2], interpolation, fill_mode, sources[2])
    return tf.gradients(found, sources, upstream, unconnected_gradients="zero")
