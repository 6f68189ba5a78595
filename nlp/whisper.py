"""Whisper: speech in many languages to text. Radford et al. 2022, arXiv:2212.04356."""

import math

import numpy as np

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Conv1D

from ..presets import Family, register
from .byte_pair import WhisperTokenizer
from .encoder_decoder import SIZES, SizedEncoderDecoder, block_weights
from .speech import SpeechToText
from .transformer import ACTIVATIONS, table, tied_scores

WEIGHTS = [
    ("encoder.conv{i}", "conv{i}"),
    ("encoder.embed_positions.weight", "encoder_position"),
    ("decoder.embed_positions", "decoder_position"),
    ("decoder.embed_tokens", "embeddings"),
    *block_weights("encoder"),
    *block_weights("decoder"),
]
STRIDE = 2  # frames of a position


def sinusoids(shape, dtype=None):
    """sin(t / 10000^(i / (n - 1))) for i < n, then the cosines; (positions, 2 n)"""
    positions, width = shape
    n = width // 2
    turns = np.exp(-math.log(10_000) / (n - 1) * np.arange(n)) * np.arange(positions)[:, None]
    return ops.convert_to_tensor(np.concatenate([np.sin(turns), np.cos(turns)], 1), "float32")


class WhisperBackbone(SizedEncoderDecoder):
    """Whisper's encoder of a window of sound, and its decoder of text.

    call({"encoder_features": (batch, max_encoder_sequence_length, num_mels), "decoder_token_ids",
    "decoder_padding_mask"}): outputs as in `EncoderDecoder`, a state for every second frame
    """

    num_mels: PositiveInt = 80
    max_encoder_sequence_length: PositiveInt = 3000
    max_sequence_length: PositiveInt = 448
    dropout: Rate = 0.0
    decoder_start_token_id: int = 50257

    weight_map = WEIGHTS
    source_name = "encoder_features"
    key_bias = False
    config_names = {
        **SIZES,
        "num_mels": "num_mel_bins",
        "max_sequence_length": "max_target_positions",
    }

    def build(self, shape=None):
        width, positions = self.hidden_dim, self.max_encoder_sequence_length // STRIDE
        options = dict(dtype=self.dtype_policy)
        self.conv1 = Conv1D(width, 3, padding="same", **options)
        self.conv2 = Conv1D(width, 3, strides=STRIDE, **options)
        self.conv1.build((None, None, self.num_mels)), self.conv2.build((None, None, width))
        self.encoder_position = self.add_weight(
            (positions, width), sinusoids, name="encoder_position", trainable=False
        )
        self.embeddings = table(self, self.vocabulary_size, width)
        self.decoder_position = table(self, self.max_sequence_length, width)
        self.build_sides(last_norms=True)

    def source(self, features, training=None):
        wanted = (self.max_encoder_sequence_length, self.num_mels)
        if isinstance(features.shape[1], int) and tuple(features.shape[1:]) != wanted:
            raise ValueError(
                f"encoder_features must be (batch, {wanted[0]}, {wanted[1]}), one window each; got "
                f"{tuple(features.shape)}. WhisperFeatures makes them."
            )
        activation = ACTIVATIONS[self.activation]
        x = activation(self.conv1(ops.cast(features, self.compute_dtype)))
        x = activation(self.conv2(ops.pad(x, [(0, 0), (1, 1), (0, 0)])))
        x = x + ops.cast(self.encoder_position.value, ops.dtype(x))
        return self.drop(x, training=training) if training else x

    def target(self, token_ids, positions, training=None):
        x = self.embeddings(token_ids) + self.decoder_position(positions)
        return self.drop(x, training=training) if training else x

    @classmethod
    def config_from_reference(cls, config):
        if config.get("scale_embedding"):
            raise ValueError("Whisper with scale_embedding=True is not supported.")
        frames = STRIDE * config.get("max_source_positions", 1500)
        found = super().config_from_reference(config)
        return {**found, "max_encoder_sequence_length": frames}

    def reference_config(self):
        positions = self.max_encoder_sequence_length // STRIDE
        more = {"model_type": "whisper", "max_source_positions": positions}
        return {**super().reference_config(), **more}


class WhisperSpeechToText(SpeechToText):
    """The next token of what is said: the embeddings as the output's kernel."""

    ignored = ("proj_out.weight",)

    def build(self, shape=None):
        """The head has no weights of its own."""

    def logits(self, x):
        """(..., hidden_dim) -> (..., vocabulary_size)"""
        return tied_scores(x, self.backbone.embeddings)


register(
    Family(
        name="whisper",
        model_types=("whisper",),
        backbone=WhisperBackbone,
        tokenizer=WhisperTokenizer,
        tasks={"SpeechToText": WhisperSpeechToText},
        architectures={
            "SpeechToText": "WhisperForConditionalGeneration",
            "Backbone": "WhisperModel",
        },
    )
)
