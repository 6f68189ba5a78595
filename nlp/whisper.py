"""Whisper: speech in many languages to text. Radford et al. 2022, arXiv:2212.04356."""

import math

import numpy as np

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Conv1D

from .byte_pair import WhisperTokenizer
from .encoder_decoder import SIZES, SizedEncoderDecoder, block_weights, register_kinds
from .speech import SpeechToText
from .transformer import ACTIVATIONS, built, check_config, table

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
    needed = ("encoder_features", "decoder_token_ids")
    model_type = "whisper"
    key_bias = False
    config_names = {
        **SIZES,
        "num_mels": "num_mel_bins",
        "max_sequence_length": "max_target_positions",
    }

    def build(self, shape=None):
        width, positions = self.hidden_dim, self.max_encoder_sequence_length // STRIDE
        options = dict(dtype=self.dtype_policy)
        first, second = (None, None, self.num_mels), (None, None, width)
        self.conv1 = built(Conv1D(width, 3, padding="same", **options), first)
        self.conv2 = built(Conv1D(width, 3, strides=STRIDE, **options), second)
        self.encoder_position = self.add_weight(
            (positions, width), sinusoids, name="encoder_position", trainable=False
        )
        self.embeddings = table(self, self.vocabulary_size, width)
        self.decoder_position = table(self, self.max_sequence_length, width)
        self.build_sides(last_norms=True)

    def source(self, features):
        wanted = (self.max_encoder_sequence_length, self.num_mels)
        if isinstance(features.shape[1], int) and tuple(features.shape[1:]) != wanted:
            raise ValueError(
                f"encoder_features must be (batch, {wanted[0]}, {wanted[1]}), one window each; got "
                f"{tuple(features.shape)}. WhisperFeatures makes them."
            )
        activation = ACTIVATIONS[self.activation]
        x = activation(self.conv1(ops.cast(features, self.compute_dtype)))
        x = activation(self.conv2(ops.pad(x, [(0, 0), (1, 1), (0, 0)])))
        return x + ops.cast(self.encoder_position.value, ops.dtype(x))

    def target(self, token_ids, positions):
        return self.embeddings(token_ids) + self.decoder_position(positions)

    @classmethod
    def config_from_reference(cls, config):
        check_config(config, {"scale_embedding": False}, "Whisper")
        frames = STRIDE * config.get("max_source_positions", 1500)
        found = super().config_from_reference(config)
        return {**found, "max_encoder_sequence_length": frames}

    def reference_config(self):
        positions = self.max_encoder_sequence_length // STRIDE
        return {**super().reference_config(), "max_source_positions": positions}


class WhisperSpeechToText(SpeechToText):
    """The next token of what is said: the embeddings as the output's kernel."""

    weight_map = [("proj_out", "lm_head")]


classes = WhisperBackbone, WhisperTokenizer, WhisperSpeechToText
register_kinds("whisper", {"whisper": "Whisper"}, *classes, "SpeechToText")
