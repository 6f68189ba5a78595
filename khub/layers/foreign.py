"""Layers around what was written for one framework: its modules, functions and files."""

import inspect
from importlib import import_module

from khub import backend, ops, random, tree
from khub.backend.scope import local
from khub.backend.variable import Variable
from khub.layers.layer import Layer
from khub.ops.symbolic import KerasTensor, map_shapes


class _Foreign(Layer):
    """Base of layers that one backend alone can run; `_needs` is its name."""

    _needs = None

    def __init__(self, **kwargs):
        if backend.name != self._needs:
            raise NotImplementedError(
                f"{type(self).__name__} runs on the {self._needs} backend alone, not on "
                f"{backend.name}: set KHUB_BACKEND={self._needs}."
            )
        super().__init__(**kwargs)

    def _native(self):
        """Return the backend's functions for these layers, which no other layer needs."""
        return import_module(f"khub.backend.{self._needs}.foreign")

    def _adopt(self, name, storage, trainable):
        """Return a Variable whose storage is the framework's own, so that both see a change."""
        dtype = ops.dtype(storage)
        variable = Variable(
            "zeros", shape=tuple(storage.shape), dtype=dtype, trainable=trainable, name=name
        )
        variable._storage = storage
        self._added.append(variable)
        return variable

    def get_config(self):
        raise NotImplementedError(
            f"{type(self).__name__} {self.name!r} holds code of {self._needs}, which no file may "
            "carry: save its weights, and make the layer again in code."
        )

    @classmethod
    def from_config(cls, config):
        raise ValueError(f"A {cls.__name__} is not made from a file: that would run foreign code.")


class TorchModuleWrapper(_Foreign):
    """A `torch.nn.Module` as a layer: its parameters and buffers are the layer's weights.

    module: its parameters must exist (call a lazy module once)
    output_shape: of the output with its batch axis, where it cannot be worked out
    """

    _needs = "torch"

    def __init__(self, module, name=None, output_shape=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.module, self.output_shape = module, output_shape
        found = self._native().module_tensors(module).items()
        adopted = {
            key: self._adopt(key.replace(".", "_"), tensor, trained and tensor.requires_grad)
            for key, (tensor, trained) in found
        }
        # a plain function, so that nothing is found twice in the layer's attributes
        self._adopted = lambda: adopted
        self.built = True

    def call(self, *args, training=None, **kwargs):
        return self._native().call_module(self.module, self._adopted(), training, args, kwargs)

    def compute_output_spec(self, *args, **kwargs):
        if self.output_shape is not None:
            return KerasTensor(self.output_shape, self.compute_dtype)
        return super().compute_output_spec(*args, **kwargs)

    def _torch_items(self):
        return {"module": self.module}  # where nn.Module's methods find all of them


class JaxLayer(_Foreign):
    """A function written in JAX as a layer.

    call_fn: with any of the arguments params, state, rng, inputs, training; gives the outputs, and
    with `state` a pair of them and the new state.  init_fn: (rng, inputs[, training]) -> params, or
    (params, state).  params, state: trees of arrays, instead of init_fn's
    """

    _needs = "jax"

    def __init__(
        self,
        call_fn,
        init_fn=None,
        params=None,
        state=None,
        seed=None,
        native_serialization_platforms=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if native_serialization_platforms is not None:
            raise ValueError("native_serialization_platforms is for TensorFlow's backend in Keras.")
        self.call_fn, self.init_fn = call_fn, init_fn
        self.seed_generator = random.SeedGenerator(seed)
        self._takes = list(inspect.signature(call_fn).parameters)
        unknown = set(self._takes) - {"params", "state", "rng", "inputs", "training"}
        if unknown or "inputs" not in self._takes:
            raise ValueError(
                "call_fn takes inputs and any of params, state, rng, training, got "
                f"({', '.join(self._takes)})."
            )
        if init_fn is None and params is None and state is None:
            raise ValueError("JaxLayer needs init_fn, or params and state.")
        self._trees = {}
        if params is not None or state is not None:
            self._keep(params, state)

    def _keep(self, params, state):
        """Make Variables of the two trees; leaves that are no arrays stay as they are."""
        for kind, structure in (("params", params), ("state", state)):
            if structure is None:
                continue
            named, rebuild = self._native().flatten_tree(structure)
            leaves = [
                self._weight(name, leaf, kind == "params") if hasattr(leaf, "shape") else leaf
                for name, leaf in named.items()
            ]
            self._trees[kind] = lambda leaves=leaves, rebuild=rebuild: (leaves, rebuild)

    def _weight(self, name, leaf, trainable):
        dtype, name = ops.dtype(leaf), name.replace(".", "_")
        return self.add_weight(
            leaf.shape, lambda shape, dtype: leaf, dtype, trainable, autocast=False, name=name
        )

    def build(self, input_shape):
        if self._trees:
            return

        def sample(shape):
            return ops.zeros([1 if n is None else n for n in shape], self.compute_dtype)

        given = {"rng": self.seed_generator.next(), "inputs": map_shapes(sample, input_shape)}
        if "training" in inspect.signature(self.init_fn).parameters:
            given["training"] = True
        made = self.init_fn(**given)
        self._keep(*(made if "state" in self._takes else (made, None)))

    def call(self, inputs, training=False):
        given = {"inputs": inputs, "training": bool(training)}
        for kind in ("params", "state"):
            leaves, rebuild = self._trees[kind]() if kind in self._trees else ([], lambda _: None)
            given[kind] = rebuild([x.value if isinstance(x, Variable) else x for x in leaves])
        if "rng" in self._takes:
            given["rng"] = self.seed_generator.next()
        outputs = self.call_fn(**{name: given[name] for name in self._takes})
        if "state" not in self._takes:
            return outputs
        outputs, state = outputs
        abstract = local.scope is not None and local.scope.is_abstract()
        if state is not None and "state" in self._trees and not abstract:
            new = self._native().flatten_tree(state)[0].values()
            for variable, value in zip(self._trees["state"]()[0], new, strict=True):
                if isinstance(variable, Variable):
                    variable.assign(value)
        return outputs


class FlaxLayer(JaxLayer):
    """A `flax.linen.Module` as a layer.

    method: of the module, or a function (module, inputs[, training]); variables: a dict of
    collections as `init` gives them; "params" is trained, the others are state
    """

    def __init__(self, module, method=None, variables=None, **kwargs):
        if not (hasattr(module, "init") and hasattr(module, "apply")):
            raise TypeError(f"FlaxLayer takes a flax.linen.Module, got {type(module).__name__}.")
        self.method = method
        function = getattr(module, method) if isinstance(method, str) else method
        switches = "training" in inspect.signature(function or module.__call__).parameters

        def options(training):
            return {"training": training} if switches else {}

        def init_fn(rng, inputs):
            return split(module.init({"params": rng}, inputs, method=method, **options(True)))

        def split(variables):
            variables = dict(variables)
            return variables.pop("params", {}), variables

        def call_fn(params, state, rng, inputs, training):
            return module.apply(
                {"params": params, **(state or {})},
                inputs,
                rngs={"params": rng},  # flax takes it for every name that has none of its own
                method=method,
                mutable=list(state or {}),
                **options(training),
            )

        params, state = (None, None) if variables is None else split(variables)
        super().__init__(call_fn, init_fn, params, state, **kwargs)
        self.module = module


class TFSMLayer(_Foreign):
    """A TensorFlow SavedModel as a layer; its weights can be trained further.

    filepath: the folder; call_endpoint: the function or signature that is called,
    call_training_endpoint: another one for training
    """

    _needs = "tensorflow"

    def __init__(
        self,
        filepath,
        call_endpoint="serve",
        call_training_endpoint=None,
        trainable=True,
        name=None,
        dtype=None,
    ):
        super().__init__(name=name, dtype=dtype)
        names = [call_endpoint, *([call_training_endpoint] if call_training_endpoint else [])]
        (model, *functions), variables = self._native().load_saved_model(filepath, names)
        self._saved = lambda: (model, functions)  # not an attribute that TensorFlow would track
        for v in variables:
            self._adopt(v.name.partition(":")[0].replace("/", "_"), v, v.trainable)
        self.trainable = trainable
        self.built = True

    def call(self, inputs, training=False, **kwargs):
        _, functions = self._saved()
        function = functions[-1] if training else functions[0]
        if not hasattr(function, "structured_input_signature"):
            return function(inputs, **kwargs)
        names = list(function.structured_input_signature[1])  # a signature takes names alone
        given = inputs if isinstance(inputs, dict) else dict(zip(names, tree.flatten(inputs)))
        outputs = function(**given, **kwargs)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs
