"""Layers of the data pipeline: the same code on the device, inside a model, and on the host."""

import sys

import numpy as np

from khub import ops, tree
from khub.backend import active, name
from khub.backend.host import on_host
from khub.backend.scope import local
from khub.layers.layer import Layer
from khub.ops.symbolic import KerasTensor, any_symbolic


class DataLayer(Layer):
    """Base of preprocessing layers, which run in the data pipeline of any framework.

    A call is any layer's: it takes arrays and gives tensors of the backend, and inside a model it
    runs on the device. In a worker of torch's `DataLoader`, and in `on_host`, NumPy computes and
    NumPy arrays come out; in the graph of a `tf.data` pipeline TensorFlow's tensors do.
    """

    autograph_info__ = {}  # tells TensorFlow's AutoGraph to leave it alone
    _shape_by_config = False  # vocabularies and bins may be adapted
    _host_only = False  # whether there is no other way to compute it (strings)

    def convert_weight(self, weight):
        """Return a Variable or array as what the call computes with: an array on the host."""
        return ops.convert_to_numpy(weight) if local.host else ops.convert_to_tensor(weight)

    def __call__(self, *args, **kwargs):
        if not self._call_spec.training:
            kwargs.pop("training", None)
        if local.host:
            return self.call(*args, **kwargs)
        if _in_worker():
            return self.on_host(*args, **kwargs)
        leaves = tree.flatten((args, kwargs))
        if any(map(_is_graph_tensor, leaves)) and (self._host_only or name != "tensorflow"):
            return self._in_graph(args, kwargs)
        if self._host_only and not any_symbolic(leaves):
            return tree.map_structure(_to_device, self.on_host(*args, **kwargs))
        return super().__call__(*args, **kwargs)

    def on_host(self, *args, **kwargs):
        """Call the layer with NumPy arrays, lists or strings; NumPy computes, arrays come out."""
        args, kwargs = tree.map_structure(_to_host, (args, kwargs))
        spec = self._call_spec
        if spec.training and "training" not in kwargs and len(args) < len(spec.names):
            kwargs["training"] = bool(spec.training_default)
        with on_host():
            outputs = self.call(*args, **kwargs)
        return tree.map_structure(_to_host, outputs)

    def _in_graph(self, args, kwargs):
        """Run inside a TensorFlow graph, as one node that calls back to `on_host`."""
        tensorflow = sys.modules["tensorflow"]
        leaves = tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if _is_graph_tensor(leaf)]
        symbols = list(leaves)
        for i in places:
            if leaves[i].shape.rank is None:
                raise ValueError(f"{self.name} needs a tensor of known rank, got {leaves[i]!r}.")
            symbols[i] = KerasTensor(tuple(leaves[i].shape), leaves[i].dtype.name)
        symbolic_args, symbolic_kwargs = tree.pack_sequence_as((args, kwargs), symbols)
        outputs = self.compute_output_spec(*symbolic_args, **symbolic_kwargs)
        specs = tree.flatten(outputs)

        def run(*arrays):
            values = list(leaves)
            for i, array in zip(places, arrays, strict=True):
                values[i] = array
            given_args, given_kwargs = tree.pack_sequence_as((args, kwargs), values)
            found = tree.flatten(self.on_host(*given_args, **given_kwargs))
            return [
                np.asarray(x, object if spec.dtype == "string" else spec.dtype)
                for x, spec in zip(found, specs, strict=True)
            ]

        found = tensorflow.numpy_function(
            run, [leaves[i] for i in places], [tensorflow.as_dtype(spec.dtype) for spec in specs]
        )
        for tensor, spec in zip(found, specs, strict=True):
            tensor.set_shape(spec.shape)
        return tree.pack_sequence_as(outputs, found)


def _in_worker():
    """Whether this is a worker process of torch's `DataLoader`: a fork, where JAX would hang."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


def _is_graph_tensor(x):
    """Whether `x` is a tensor of a TensorFlow graph, be that the backend or not."""
    if not type(x).__module__.startswith("tensorflow."):
        return False
    return hasattr(x, "graph") and not hasattr(x, "numpy")


def _to_host(x):
    """A tensor of any framework as a NumPy array, everything else as it is."""
    if isinstance(x, np.ndarray) or not hasattr(x, "shape"):
        return x
    return ops.convert_to_numpy(x) if active.is_tensor(x) else np.asarray(x)


def _to_device(x):
    """A NumPy array as a tensor of the backend; strings stay on the host."""
    if not isinstance(x, np.ndarray) or x.dtype.kind in "OUS":
        return x
    return ops.convert_to_tensor(x)
