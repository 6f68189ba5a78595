"""FeatureSpace: tables of numbers, categories and strings, each encoded by a layer of its own."""

import numpy as np

from khub import layers, ops, tree
from khub.backend.variable import unique_name
from khub.fields import Choice, Configurable
from khub.layers.data_layer import DataLayer
from khub.layers.encoding import host_array
from khub.ops.symbolic import KerasTensor, any_symbolic
from khub.saving import registry
from khub.saving.layer_files import ModelFiles

_MODULE = "keras.src.layers.preprocessing.feature_space"


class _Described(Configurable):
    _kind, _module = "feature_space", _MODULE


class Cross(_Described):
    """Features to be hashed together into `crossing_dim` bins."""

    feature_names: tuple
    crossing_dim: int
    output_mode: Choice("int", "one_hot") = "one_hot"

    def setup(self):
        self.feature_names = tuple(self.feature_names)

    @property
    def name(self):
        """The names of the features, joined by "_X_"."""
        return "_X_".join(self.feature_names)


class Feature(_Described):
    """A column: its dtype, the layer that processes it, and what the layer's result becomes."""

    dtype: str
    preprocessor: object
    output_mode: Choice("int", "one_hot", "float")

    def setup(self):
        if isinstance(self.preprocessor, dict):
            self.preprocessor = registry.deserialize(self.preprocessor, None, "layers")


def _feature(kind, name, dtype, output_mode, layer, *arguments):
    layer = layer(*arguments, name=f"{name or unique_name(kind)}_preprocessor")
    return Feature(dtype, layer, output_mode)


class TFDIdentity(DataLayer):
    """Leaves a column as it is."""

    _kind, _module = "feature_space", _MODULE

    def call(self, inputs):
        return inputs


class TFDConcat(DataLayer):
    """Joins encoded columns along `axis`."""

    _kind, _module = "feature_space", _MODULE

    axis: int

    def call(self, inputs):
        return ops.concatenate(inputs, axis=self.axis)


def _column(x, dtype):
    """A column as (batch, 1); a single value as a batch of one."""
    x = host_array(x)
    x = x if dtype == "string" else x.astype(dtype)
    return x.reshape(-1, 1) if x.ndim < 2 else x


class FeatureSpace(DataLayer):
    """Encodes a dict of columns: into one array, or with output_mode "dict" a dict of them.

    features: name -> "float", "string_categorical", ... or what the methods of these names give;
    crosses: tuples of names whose combined values are hashed into `crossing_dim` bins.
    Call it on a dict of arrays (batch,), (batch, 1) or of single values, after `adapt`.
    """

    _kind, _module = "feature_space", _MODULE
    _host_only = True
    _unsaved = ("name", "trainable", "dtype")

    features: dict
    output_mode: Choice("concat", "dict") = "concat"
    crosses: list = None
    crossing_dim: int = 32
    hashing_dim: int = 32
    num_discretization_bins: int = 32

    def setup(self):
        features = self.features
        if not isinstance(features, dict) or not features:
            raise ValueError(f"features must be a dict of at least one feature, got {features!r}.")
        self.features = {k: self._standardize(k, v) for k, v in features.items()}
        self.crosses = [self._crossed(cross) for cross in self.crosses or ()]
        self.inputs = {
            k: layers.Input((1,), dtype=v.dtype, name=k) for k, v in self.features.items()
        }
        self.preprocessors = {k: v.preprocessor for k, v in self.features.items()}
        self.crossers = {
            c.name: layers.HashedCrossing(c.crossing_dim, name=c.name) for c in self.crosses
        }
        self.one_hot_encoders, self.concat = {}, TFDConcat(-1)
        self._encoded, self._is_adapted = None, not self._to_adapt()

    # --- features --------------------------------------------------------------------------------
    @classmethod
    def cross(cls, feature_names, crossing_dim, output_mode="one_hot"):
        """Return features to be hashed together."""
        return Cross(feature_names, crossing_dim, output_mode)

    @classmethod
    def feature(cls, dtype, preprocessor, output_mode):
        """Return a column that a layer of yours processes."""
        return Feature(dtype, preprocessor, output_mode)

    @classmethod
    def float(cls, name=None):
        """Return a column of numbers that stay as they are."""
        return _feature("float", name, "float32", "float", TFDIdentity)

    @classmethod
    def float_rescaled(cls, scale=1.0, offset=0.0, name=None):
        """Return a column of numbers: x * scale + offset."""
        sizes = scale, offset
        return _feature("float_rescaled", name, "float32", "float", layers.Rescaling, *sizes)

    @classmethod
    def float_normalized(cls, name=None):
        """Return a column of numbers, brought to mean 0 and variance 1."""
        return _feature("float_normalized", name, "float32", "float", layers.Normalization)

    @classmethod
    def float_discretized(cls, num_bins, bin_boundaries=None, output_mode="one_hot", name=None):
        """Return a column of numbers, put into bins."""
        bins = bin_boundaries, num_bins if bin_boundaries is None else None
        kind = "float_discretized"
        return _feature(kind, name, "float32", output_mode, layers.Discretization, *bins)

    @classmethod
    def integer_categorical(
        cls, max_tokens=None, num_oov_indices=1, output_mode="one_hot", name=None
    ):
        """Return a column of integers, looked up in a vocabulary."""
        sizes, kind = (max_tokens, num_oov_indices), "integer_categorical"
        return _feature(kind, name, "int32", output_mode, layers.IntegerLookup, *sizes)

    @classmethod
    def string_categorical(
        cls, max_tokens=None, num_oov_indices=1, output_mode="one_hot", name=None
    ):
        """Return a column of strings, looked up in a vocabulary."""
        sizes, kind = (max_tokens, num_oov_indices), "string_categorical"
        return _feature(kind, name, "string", output_mode, layers.StringLookup, *sizes)

    @classmethod
    def string_hashed(cls, num_bins, output_mode="one_hot", name=None):
        """Return a column of strings, hashed into bins."""
        return _feature("string_hashed", name, "string", output_mode, layers.Hashing, num_bins)

    @classmethod
    def integer_hashed(cls, num_bins, output_mode="one_hot", name=None):
        """Return a column of integers, hashed into bins."""
        return _feature("integer_hashed", name, "int32", output_mode, layers.Hashing, num_bins)

    def _standardize(self, name, feature):
        if isinstance(feature, dict):
            feature = registry.deserialize(feature)
        if isinstance(feature, Feature):
            return feature
        sizes = {  # what features without a default size are given
            "float_discretized": [self.num_discretization_bins],
            "string_hashed": [self.hashing_dim],
            "integer_hashed": [self.hashing_dim],
        }
        known = ["float", "float_rescaled", "float_normalized", "integer_categorical"]
        known += ["string_categorical", *sizes]
        if feature not in known:
            raise ValueError(
                f"features: {name!r} must be a FeatureSpace feature or one of {', '.join(known)}, "
                f"got {feature!r}."
            )
        return getattr(FeatureSpace, feature)(*sizes.get(feature, ()), name=name)

    def _crossed(self, cross):
        if isinstance(cross, dict):
            cross = registry.deserialize(cross)
        cross = cross if isinstance(cross, Cross) else Cross(tuple(cross), self.crossing_dim)
        unknown = [name for name in cross.feature_names if name not in self.features]
        if unknown:
            raise ValueError(f"crosses: {unknown} are not among {sorted(self.features)}.")
        return cross

    # --- adapt -----------------------------------------------------------------------------------
    def _to_adapt(self):
        """The layers that need to see data: name -> layer."""
        return {
            name: layer
            for name, layer in self.preprocessors.items()
            if hasattr(layer, "adapt")
            and getattr(layer, "bin_boundaries", None) is None
            and getattr(layer, "input_mean", None) is None
            and not (hasattr(layer, "get_vocabulary") and layer.get_vocabulary(False))
        }

    def adapt(self, dataset):
        """Adapt all layers in one pass over a dict of columns, or an iterable of such batches."""
        waiting = self._to_adapt()
        for layer in waiting.values():
            layer.reset_state()
        for batch in [dataset] if isinstance(dataset, dict) else dataset:
            batch = batch[0] if isinstance(batch, (list, tuple)) else batch
            self._check(batch)
            for name, layer in waiting.items():
                layer.update_state(_column(batch[name], self.features[name].dtype))
        for layer in waiting.values():
            layer.finalize_state()
        self._is_adapted, self._encoded = True, None
        self.get_encoded_features()

    def _check(self, data):
        if not isinstance(data, dict):
            raise ValueError(f"{self.name} takes a dict of columns, got {type(data).__name__}.")
        missing = [name for name in self.features if name not in data]
        if missing:
            raise ValueError(f"{self.name} lacks the columns {missing}, got {sorted(data)}.")

    # --- call ------------------------------------------------------------------------------------
    def get_inputs(self):
        """Return name -> symbolic input, for a Functional model."""
        self._require_adapted()
        return self.inputs

    def get_encoded_features(self):
        """Return the symbolic encoded features of `get_inputs()`."""
        self._require_adapted()
        if self._encoded is None:
            self._encoded = self._encode(self.inputs)
        return self._encoded

    def _require_adapted(self):
        if not self._is_adapted:
            raise ValueError(f"{self.name} is not adapted yet: call adapt(dataset) first.")

    def __call__(self, data):
        self._check(data)
        self.get_encoded_features()  # makes the encoders, outside of any graph
        return super().__call__({name: data[name] for name in self.features})

    def call(self, data):
        single = {name: np.ndim(host_array(x)) == 0 for name, x in data.items()}
        columns = {name: _column(x, self.features[name].dtype) for name, x in data.items()}
        found = self._encode(columns)
        return tree.map_structure(lambda x: x[0], found) if all(single.values()) else found

    def compute_output_spec(self, data):
        single = all(len(x.shape) == 0 for x in data.values())
        batch = None if single else next(iter(data.values())).shape[0]

        def spec(x):
            return KerasTensor(x.shape[1:] if single else (batch, *x.shape[1:]), x.dtype)

        return tree.map_structure(spec, self.get_encoded_features())

    def _encode(self, columns):
        """Return the encoded columns and crosses; symbols or, on the host, arrays."""
        symbolic = any_symbolic(columns)
        found = {name: self.preprocessors[name](columns[name]) for name in self.features}
        for cross in self.crosses:
            parts = [found[name] for name in cross.feature_names]  # indices, as Keras crosses
            found[cross.name] = self.crossers[cross.name](parts)
        modes = {name: feature.output_mode for name, feature in self.features.items()}
        modes |= {cross.name: cross.output_mode for cross in self.crosses}
        for name, x in found.items():
            if modes[name] == "one_hot":
                found[name] = self._encoder(name)(x)
        if self.output_mode == "dict":
            return found
        names = [*sorted(self.features), *sorted(self.crossers)]
        integers = [name for name in names if modes[name] == "int"]
        if integers:
            raise ValueError(
                f"{self.name}: {integers} are integers, which output_mode='concat' cannot join; "
                "use output_mode='dict' or encode them as one_hot."
            )
        parts = [found[name] for name in names]
        if not symbolic:
            parts = [np.asarray(part, "float32") for part in parts]
        return self.concat(parts)

    def _encoder(self, name):
        """The layer that turns a column's indices into a vector; made when it is first needed."""
        if name not in self.one_hot_encoders:
            layer = self.preprocessors.get(name) or self.crossers[name]
            sized = hasattr(layer, "vocabulary_size")
            count = layer.vocabulary_size() if sized else layer._count()
            self.one_hot_encoders[name] = layers.CategoryEncoding(count, output_mode="multi_hot")
        return self.one_hot_encoders[name]

    # --- files -----------------------------------------------------------------------------------
    save = ModelFiles.save

    def get_build_config(self):
        """Return what is known of the columns."""
        return {name: feature.dtype for name, feature in self.features.items()}

    def build_from_config(self, config):
        """Make all layers; their state is read from the file's weights and assets."""
        self._is_adapted = True
        self.get_encoded_features()
