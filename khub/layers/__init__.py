"""All layers."""

from khub.layers.activation import ELU, LeakyReLU, PReLU, ReLU, Softmax
from khub.layers.attention import *  # noqa: F403
from khub.layers.audio import MelSpectrogram, STFTSpectrogram
from khub.layers.convolution import *  # noqa: F403
from khub.layers.core import (
    Activation,
    Dense,
    EinsumDense,
    Embedding,
    Identity,
    Input,
    InputLayer,
    Lambda,
    Masking,
    ReversibleEmbedding,
)
from khub.layers.foreign import FlaxLayer, JaxLayer, TFSMLayer, TorchModuleWrapper
from khub.layers.image_boxes import MaxNumBoundingBoxes
from khub.layers.image_color import *  # noqa: F403
from khub.layers.image_geometry import *  # noqa: F403
from khub.layers.image_layer import Pipeline, Rescaling
from khub.layers.image_mixing import AugMix, CutMix, MixUp, RandAugment, RandomErasing
from khub.layers.layer import InputSpec, Layer
from khub.layers.lookup import IntegerLookup, StringLookup
from khub.layers.merging import *  # noqa: F403
from khub.layers.norm import *  # noqa: F403
from khub.layers.pooling import *  # noqa: F403
from khub.layers.recurrent import *  # noqa: F403
from khub.layers.regularization import *  # noqa: F403
from khub.layers.reshaping import *  # noqa: F403
from khub.layers.tabular import (
    CategoryEncoding,
    Discretization,
    HashedCrossing,
    Hashing,
    Normalization,
)
from khub.layers.text import TextVectorization
from khub.layers.wrappers import *  # noqa: F403
from khub.saving import registry


def serialize(layer):
    """Return a layer as plain data, as Keras writes it."""
    return registry.serialize(layer)


def deserialize(config, custom_objects=None):
    """Build a layer from `serialize`'s result; only registered classes are instantiated."""
    return registry.deserialize(config, custom_objects, "layers")
