"""All layers."""

from khub.layers.activation import ELU, LeakyReLU, PReLU, ReLU, Softmax
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
)
from khub.layers.layer import InputSpec, Layer
from khub.layers.merging import *  # noqa: F403
from khub.layers.norm import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    RMSNormalization,
    UnitNormalization,
)
from khub.layers.pooling import *  # noqa: F403
from khub.layers.regularization import ActivityRegularization, Dropout, GaussianNoise
from khub.layers.reshaping import Flatten, Permute, RepeatVector, Reshape
