"""Layer: Variables and sub-layers found by their attributes, and a call that costs little.

A call has two speeds. What `training`, masks, dtypes and hooks need is looked up once a class or at
build; a built layer called with one native tensor of its dtype goes straight to `call`.
"""

import functools
import inspect
from contextlib import nullcontext

import numpy as np

from khub import dtype_policies, dtypes, tree
from khub.backend import active
from khub.backend.scope import Autocast, Scope, local
from khub.backend.stateless import StatelessScope
from khub.backend.variable import Variable, name_scope
from khub.choices import hint
from khub.layers.call_spec import CallSpec
from khub.layers.input_spec import InputSpec
from khub.layers.masks import MASKS, get_mask, set_mask
from khub.layers.shapes import shapes_of, traced_spec
from khub.operation import Operation
from khub.ops.op import value_of
from khub.ops.symbolic import KerasTensor, any_symbolic
from khub.random import SeedGenerator
from khub.saving import registry
from khub.saving.layer_files import LayerFiles

_TENSORS = active.TENSORS
_compiling = getattr(active, "compiling", bool)  # whether torch.compile reads this code
_FLOATS = frozenset(active.NATIVE[name] for name in dtypes.FLOATS)
INTERNAL = """
_added _arguments _build_shapes _first_call _graph _losses _losses_of _metrics _nodes _policy
_state_variables _training_state optimizer preprocessor
"""  # attributes whose Variables and layers are none of this layer's
INTERNAL = frozenset(INTERNAL.split())
_OF_ONE = "_losses_of _metrics _training_state train_function test_function predict_function"
_PLAIN = frozenset({bool, int, float, str, type(None)})  # they hold nothing, and are most of all


class CallContext:
    """One outermost call: what its inner calls inherit. In `with`, what comes there is one call."""

    def __init__(self, training):
        self.training = training

    def __enter__(self):
        self.outer, local.call = local.call, self

    def __exit__(self, *_):
        local.call = self.outer


def _scoped_build(build):
    """Wrap a class's `build`: paths of its Variables begin with the layer's name; it runs once."""

    @functools.wraps(build)
    def run(self, *args, **kwargs):
        if self._building:  # super().build(...)
            return build(self, *args, **kwargs)
        self._building = True
        try:
            with name_scope(self.name), Autocast(None):
                build(self, *args, **kwargs)
        finally:
            self._building = False
        names = list(inspect.signature(build).parameters)[1:]
        self._build_shapes = dict(zip(names, args, strict=False)) | kwargs
        self.built = True
        self._policy.apply(self)
        self._prepare()

    run.scoped = True
    return run


class Layer(LayerFiles, Operation, active.Base):
    """Base of all layers: fields or `__init__` configure, `build` makes Variables, `call` computes.

    activity_regularizer: penalty on the output; trainable: False freezes the Variables; dtype: a
    dtype or `DTypePolicy`; autocast: whether float inputs are cast to the compute dtype.
    """

    _kind = "layers"
    # arguments that Keras' files carry and khub has no use for, with the value they must have
    _keras_keys = {}
    _unsaved = ()  # arguments that Keras' files do not carry
    _shape_by_config = True  # whether fields and inputs of a built-in layer tell its output's shape
    supports_masking = False
    input_spec = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__ and not hasattr(cls.build, "scoped"):
            cls.build = _scoped_build(cls.__dict__["build"])
        if "compute_mask" in cls.__dict__ and "supports_masking" not in cls.__dict__:
            cls.supports_masking = True
        cls._call_spec = CallSpec(cls, Layer)

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        state = self.__dict__
        state["_added"], state["_losses"], state["_losses_of"] = [], [], None
        state["built"] = state["_building"] = state["_quick"] = state["_hooked"] = False
        state["_trainable"], state["_build_shapes"], state["_first_call"] = True, None, None
        state["_remat"] = local.remat
        return self

    def __init__(
        self,
        *,
        activity_regularizer=None,
        trainable=True,
        dtype=None,
        autocast=True,
        name=None,
        **kwargs,
    ):
        super().__init__(name)
        shape = kwargs.pop("input_shape", None)
        if "batch_input_shape" in kwargs:
            shape = kwargs.pop("batch_input_shape")[1:]
        self._input_shape_given = None if shape is None else tuple(shape)
        self._policy = dtype_policies.get(dtype)
        for key, value in self._keras_keys.items():
            if not self._policy.takes(self, key, kwargs.pop(key, value), value):
                raise ValueError(f"{type(self).__name__} supports no {key} but {value!r}.")
        if kwargs:
            known = [f[0] for f in self._fields] + ["name", "dtype", "trainable"]
            raise TypeError(
                f"{type(self).__name__} takes {', '.join(known)}, and no argument "
                f"{', '.join(map(repr, kwargs))}{hint(next(iter(kwargs)), known)}"
            )
        self.activity_regularizer = registry.get("regularizers", activity_regularizer)
        self.autocast = autocast
        self._trainable = bool(trainable)
        self._native_dtype = active.NATIVE[self._policy.compute_dtype]

    # --- dtype -----------------------------------------------------------------------------------
    @property
    def dtype_policy(self):
        """The layer's `DTypePolicy`."""
        return self._policy

    @dtype_policy.setter
    def dtype_policy(self, policy):
        self._policy = dtype_policies.get(policy)
        self._native_dtype = active.NATIVE[self._policy.compute_dtype]
        self._prepare()

    @property
    def dtype(self):
        """The dtype of the layer's Variables."""
        return self._policy.variable_dtype

    variable_dtype = dtype

    @property
    def compute_dtype(self):
        """The dtype the layer computes in."""
        return self._policy.compute_dtype

    # --- Variables and sub-layers ----------------------------------------------------------------
    def add_weight(
        self,
        *args,
        shape=None,
        initializer=None,
        dtype=None,
        trainable=True,
        autocast=True,
        regularizer=None,
        constraint=None,
        aggregation="none",
        overwrite_with_gradient=False,
        name=None,
    ):
        """Make a Variable of this layer and return it.

        An initializer, regularizer or constraint that is not given is the layer's
        `{name}_initializer`, `{name}_regularizer`, `{name}_constraint`, those of a
        "recurrent_kernel" are `recurrent_initializer` ...; the last resort is glorot_uniform (zeros
        for integers).
        """
        given = *args, *(shape, initializer, dtype, trainable, autocast)[len(args) :]
        shape, initializer, dtype, trainable, autocast = given
        dtype = dtypes.standardize(dtype or self.dtype)
        part = name and name.removesuffix("_kernel")
        if initializer is None:
            default = "glorot_uniform" if dtypes.is_float(dtype) else "zeros"
            initializer = getattr(self, f"{part}_initializer", None) or default
        with nullcontext() if self._building else name_scope(self.name):
            variable = Variable(
                registry.get("initializers", initializer),
                shape=() if shape is None else shape,
                dtype=dtype,
                trainable=trainable and dtypes.is_float(dtype),
                autocast=autocast,
                aggregation=aggregation,
                name=name,
            )
        variable.regularizer = registry.get(
            "regularizers", regularizer or getattr(self, f"{part}_regularizer", None)
        )
        variable.constraint = registry.get(
            "constraints", constraint or getattr(self, f"{part}_constraint", None)
        )
        variable.overwrite_with_gradient = overwrite_with_gradient
        if not self._trainable:
            variable.trainable = False
        self._added.append(variable)
        return variable

    def _members(self):
        """Iterate over (attribute path, Variable or Layer) of what this layer holds directly."""

        def walk(prefix, items):
            for name, value in items:
                if type(value) in _PLAIN:
                    continue
                if isinstance(value, (Variable, Layer)):
                    yield f"{prefix}{name}", value
                elif isinstance(value, SeedGenerator):
                    yield f"{prefix}{name}.state", value.state
                elif isinstance(value, (list, tuple)):
                    yield from walk(f"{prefix}{name}.", enumerate(value))
                elif isinstance(value, dict):
                    yield from walk(f"{prefix}{name}.", value.items())

        return walk("", [(n, v) for n, v in vars(self).items() if n not in INTERNAL])

    def _own_variables(self):
        """Name -> Variable, in the order of their making, those that are trained first."""
        found = {
            id(v): (path, v)
            for path, v in reversed(list(self._members()))
            if isinstance(v, Variable)
        }
        ordered = {}
        for variable in self._added:
            path, _ = found.pop(id(variable), (variable.name, variable))
            ordered[path] = variable
        ordered.update(reversed([entry for entry in found.values()]))
        return dict(sorted(ordered.items(), key=lambda item: not item[1].made_trainable))

    def _children(self):
        """(path, Layer) pairs of the direct sub-layers, each once."""
        seen = {}
        for path, value in self._members():
            if isinstance(value, Layer):
                seen.setdefault(id(value), (path, value))
        return list(seen.values())

    def named_layers(self):
        """Return attribute path -> layer for this layer ("") and everything below it, each once."""
        result, seen, waiting = {}, set(), [("", self)]
        while waiting:  # no function that calls itself: it would keep the model until collected
            prefix, layer = waiting.pop()
            if id(layer) not in seen:
                seen.add(id(layer))
                result[prefix], children = layer, reversed(layer._children())
                waiting += [(f"{prefix}.{p}" if prefix else p, child) for p, child in children]
        return result

    def named_variables(self):
        """Return attribute path ("layers.0.query.kernel") -> Variable, alike on every backend."""
        result, seen = {}, set()
        for prefix, layer in self.named_layers().items():
            for path, variable in layer._own_variables().items():
                if id(variable) not in seen:
                    seen.add(id(variable))
                    result[f"{prefix}.{path}" if prefix else path] = variable
        return result

    @property
    def variables(self):
        """All Variables of this layer and the layers below it."""
        return list(self.named_variables().values())

    @property
    def weights(self):
        """All Variables but the states of random generators."""
        return [v for v in self.variables if not v.name.endswith("seed_generator_state")]

    @property
    def trainable_variables(self):
        """The Variables an optimizer may change."""
        frozen = {
            id(v)
            for layer in self.named_layers().values()
            if not layer._trainable
            for v in layer._own_variables().values()
        }
        if not self._trainable:
            return []
        return [v for v in self.variables if v.trainable and id(v) not in frozen]

    trainable_weights = trainable_variables

    @property
    def non_trainable_variables(self):
        """The Variables no optimizer changes."""
        trained = set(map(id, self.trainable_variables))
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self):
        """The weights no optimizer changes."""
        trained = set(map(id, self.trainable_variables))
        return [v for v in self.weights if id(v) not in trained]

    @property
    def trainable(self):
        """Whether this layer's Variables are trained; setting it reaches all layers below."""
        return self._trainable

    @trainable.setter
    def trainable(self, value):
        for layer in self.named_layers().values():
            layer.__dict__["_trainable"] = bool(value)
            for variable in layer._own_variables().values():
                if variable.made_trainable:
                    variable.trainable = value

    @property
    def path(self):
        """The layer's name."""
        return self.name

    @property
    def metrics(self):
        """The metrics kept as attributes of this layer and of those below."""
        from khub.metrics import Metric

        owners = self.named_layers().values()
        return [m for layer in owners for m in vars(layer).values() if isinstance(m, Metric)]

    @property
    def metrics_variables(self):
        """The Variables of `metrics`."""
        return [v for metric in self.metrics for v in metric.variables]

    def count_params(self):
        """Return the number of weights.  Raises ValueError before the layer is built."""
        if not self.built and not self.weights:
            raise ValueError(f"{self.name} has no weights yet: call it on data or build it first.")
        return sum(int(np.prod(v.shape)) for v in self.weights)

    # --- build -----------------------------------------------------------------------------------
    def build(self, input_shape):
        """Make the Variables for inputs of this shape; layers that have none need no `build`."""
        self.built = True
        self._prepare()

    build.scoped = True

    def _prepare(self):
        """Decide whether a plain call may go straight to `call`."""
        self._quick = (
            self.built
            and not self._hooked
            and self._remat is None
            and not (self._call_spec.makes_masks and self.supports_masking)
            and not self._reports()
            and self._policy.compute_dtype == self._policy.variable_dtype
            and dtypes.is_float(self._policy.compute_dtype)
        )

    def _reports(self):
        """Whether a call adds losses, here or below: they belong to the outermost call."""
        return any(
            layer._call_spec.reports or getattr(layer, "activity_regularizer", None) is not None
            for layer in self.named_layers().values()
        )

    def _build_for(self, args, kwargs):
        """Call `build` with the shapes of these inputs."""
        problem = self._spec_problem(args)
        if problem:
            raise ValueError(problem)
        names = list(inspect.signature(self.build).parameters)
        given = dict(zip(self._call_spec.names, args, strict=False)) | kwargs
        if type(self).build is Layer.build:
            self.build(None)
            shapes = {f"{name}_shape": shapes_of(x) for name, x in given.items()}
            self._build_shapes = {name: shape for name, shape in shapes.items() if shape}
        elif len(names) > 1:
            shapes = {
                name: shapes_of(given[name.removesuffix("_shape")])
                for name in names
                if given.get(name.removesuffix("_shape")) is not None
            }
            self.build(**shapes)
        else:
            first = args[0] if args else next(iter(kwargs.values()), None)
            self.build(shapes_of(first))
        if not self.built:
            raise ValueError(
                f"{self.name}.build() must not be overridden by something that is no method."
            )

    # --- call ------------------------------------------------------------------------------------
    def __call__(self, *args, **kwargs):
        if _compiling():
            from khub.export.torch import compiled_call

            return compiled_call(self, args, kwargs)
        if self._quick and args and not MASKS and local.autocast is None:
            outer, spec = local.call, self._call_spec
            if self._plain(args, kwargs, outer, spec):
                try:
                    if spec.training:
                        return self.call(*args, training=outer.training)
                    return self.call(*args)
                except Exception as error:
                    self._explain(error, args)
                    raise
        if self._hooked and not self._is_symbolic(args, kwargs):
            return self._native_call(*args, **kwargs)
        return self._khub_call(*args, **kwargs)

    def _plain(self, args, kwargs, outer, spec):
        """Whether `call` may have the arguments as they are: tensors of this layer's dtype."""
        native = self._native_dtype
        if spec.training:
            known = outer is not None and len(args) <= spec.names.index("training")
            asked, others = kwargs.get("training"), len(kwargs) != ("training" in kwargs)
            if not known or others or asked not in (None, outer.training):
                return False
        elif kwargs:
            return False
        for x in args:  # a loop: twice as fast as all() of a generator
            kind = type(x)
            if kind in _TENSORS:
                plain = x.dtype is native or x.dtype not in _FLOATS
            elif x is args[0]:
                plain = kind is list and all(type(y) in _TENSORS and y.dtype is native for y in x)
            else:
                plain = kind in _PLAIN or kind is tuple
            if not plain:
                return False
        return True

    @staticmethod
    def _is_symbolic(args, kwargs):
        """Whether a call is about shapes, not values: hooks do not run."""
        abstract = local.scope is not None and local.scope.is_abstract()
        return abstract or any_symbolic((args, kwargs))

    def _khub_call(self, *args, **kwargs):
        outer = local.call
        spec = self._call_spec
        if not all(type(x) in _TENSORS for x in args) or kwargs or outer is None:
            args, kwargs = self._convert(args, kwargs, outer is None)
            if any_symbolic((args, kwargs)):
                return self._symbolic_call(args, kwargs)
        if self.autocast:
            args, kwargs = self._cast_inputs(args, kwargs)
        if not self.built:
            self._build_for(args, kwargs)
        training = kwargs.get("training")
        if training is None and len(args) >= len(spec.names) > 0 and spec.names[-1] == "training":
            training = args[-1]
        if training is None:
            training = outer.training if outer is not None else None
        context = outer
        if outer is None:
            if training is None:
                training = self.__dict__.get("training") or bool(spec.training_default)
            context = local.call = CallContext(training)
        before = context.training
        context.training = training
        if spec.training and "training" not in kwargs and len(args) <= spec.names.index("training"):
            kwargs["training"] = training
        elif not spec.training:
            kwargs.pop("training", None)
        call = self.call
        if self._remat is not None:
            call = functools.partial(self._remat.call, self)
        try:
            marks = spec.makes_masks and self.supports_masking
            masks = self._fill_masks(args, kwargs) if MASKS or "mask" in kwargs else None
            if local.autocast != self._policy.compute_dtype and (
                self._policy.compute_dtype != self._policy.variable_dtype
                or local.autocast is not None
            ):
                with Autocast(self._policy.compute_dtype if self.autocast else None):
                    outputs = call(*args, **kwargs)
            else:
                outputs = call(*args, **kwargs)
            if self.activity_regularizer is not None:
                for y in tree.flatten(outputs):
                    self.add_loss(self.activity_regularizer(y) / active.shape(y)[0])
            if marks or masks is not None:
                self._pass_mask_on(args, masks, outputs)
        except Exception as error:
            self._explain(error, args)
            raise
        finally:
            context.training = before
            if outer is None:
                local.call = None
        return outputs

    def _convert(self, args, kwargs, outermost):
        """Turn Variables, and at the outermost call foreign arrays, into native tensors."""

        def convert(x):
            if type(x) in _TENSORS or isinstance(x, (str, bool, int, float, KerasTensor)):
                return x
            if isinstance(x, Variable):
                return x.value
            array = outermost and not active.is_tensor(x) and hasattr(x, "__array__")
            if array and getattr(x, "dtype", None) is not None:
                return x if np.asarray(x).dtype.kind in "OUS" else active.convert_to_tensor(x)
            return x

        simple = (tuple, list, dict)
        if not any(isinstance(x, simple) for x in (*args, *kwargs.values())):
            return tuple(map(convert, args)), {k: convert(v) for k, v in kwargs.items()}
        return tree.map_structure(convert, (args, kwargs))

    def _cast_inputs(self, args, kwargs):
        native, name = self._native_dtype, self._policy.compute_dtype

        def cast(x):
            if type(x) in _TENSORS and x.dtype is not native and x.dtype in _FLOATS:
                mask = get_mask(x)
                y = active.cast(x, name)
                if mask is not None:
                    set_mask(y, mask)
                return y
            return x

        if any(isinstance(x, (tuple, list, dict)) for x in args):
            args = tree.map_structure(cast, args)
        elif any(type(x) in _TENSORS and x.dtype is not native for x in args):
            args = tuple(map(cast, args))
        return args, kwargs

    def _fill_masks(self, args, kwargs):
        """Give `call` the masks that travel with its inputs, and return the first input's."""
        spec = self._call_spec
        masks = tree.map_structure(get_mask, args[0]) if args else None
        for name, mask in spec.masks:
            position = spec.names.index(name)
            if kwargs.get(mask) is None and len(args) <= spec.names.index(mask):
                x = args[position] if position < len(args) else kwargs.get(name)
                found = None if x is None else tree.map_structure(get_mask, x)
                if any(m is not None for m in tree.flatten(found)):
                    kwargs[mask] = found
            elif position == 0:
                masks = kwargs.get(mask, masks)
        return masks

    def _pass_mask_on(self, args, masks, outputs):
        none = not any(m is not None for m in tree.flatten(masks))
        if none and not self._call_spec.makes_masks:
            return
        masks = None if none else masks
        computed = self.compute_mask(args[0], masks)
        if computed is None:
            return
        flat = tree.flatten(outputs)
        for y, mask in zip(flat, tree.flatten(computed), strict=False):
            if mask is not None and get_mask(y) is None:
                set_mask(y, mask)

    def compute_mask(self, inputs, previous_mask):
        """Return the output's mask; the input's where the layer supports masking."""
        return previous_mask if self.supports_masking else None

    def _symbolic_call(self, args, kwargs):
        if not self.built:
            self._build_for(args, kwargs)
        elif problem := self._spec_problem(args):
            raise ValueError(problem)
        return self.symbolic_call(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        """Return KerasTensors like what the call would return, masks too, computing nothing."""
        return traced_spec(self, args, kwargs)

    def _spec_problem(self, args):
        specs = tree.flatten(self.input_spec) if self.input_spec is not None else []
        for spec, x in zip(specs, tree.flatten(args[:1]), strict=False):
            known = isinstance(spec, InputSpec) and hasattr(x, "shape")
            if known and (problem := spec.problem(tuple(x.shape))):
                return (
                    f"{type(self).__name__} {self.name!r} was built for an input with {problem}, "
                    f"got shape {tuple(x.shape)}; make a new layer or reshape the input."
                )
        return None

    def _explain(self, error, args):
        """Say what the input should have been, where that is what went wrong, and where it did."""
        problem = self._spec_problem(args)
        if problem and not getattr(error, "khub_explained", False):
            better = ValueError(problem)
            better.khub_explained = True
            raise better from error
        shapes = [tuple(x.shape) for x in tree.flatten(args) if hasattr(x, "shape")]
        error.add_note(f"in {type(self).__name__} {self.name!r} called on {shapes}")

    # --- losses ----------------------------------------------------------------------------------
    def add_loss(self, loss):
        """Add a scalar to the training loss; those of the latest outermost call count."""
        if local.scope is not None and local.scope.is_abstract():
            return  # a placeholder: shapes are being worked out
        if isinstance(local.scope, StatelessScope):
            if local.scope.collect_losses:
                local.scope.add_loss(loss)
            return
        if self._losses_of is not local.call or local.call is None:
            self._losses, self._losses_of = [], local.call
        self._losses.extend(tree.flatten(loss))

    @property
    def losses(self):
        """What `add_loss`, activity and weight regularizers of all layers add to the loss."""
        added = [loss for layer in self.named_layers().values() for loss in layer._losses]
        regularized = [v for v in self.trainable_variables if v.regularizer is not None]
        return added + [v.regularizer(v.value) for v in regularized]

    # --- calls without side effects --------------------------------------------------------------
    def stateless_call(
        self, trainable_variables, non_trainable_variables, *args, return_losses=False, **kwargs
    ):
        """Call with these values in place of the Variables' own.

        Returns (outputs, new values of `non_trainable_variables`), then the losses if asked for.
        """
        own = self.trainable_variables, self.non_trainable_variables
        for mine, given, what in (
            (own[0], trainable_variables, "trainable"),
            (own[1], non_trainable_variables, "non-trainable"),
        ):
            if len(mine) != len(given):
                raise ValueError(
                    f"{self.name} has {len(mine)} {what} variables, got {len(given)} values."
                )
        values = map(value_of, (*trainable_variables, *non_trainable_variables))
        values = [v if type(v) in _TENSORS else active.convert_to_tensor(v) for v in values]
        with Scope(zip((*own[0], *own[1]), values, strict=True)) as scope:
            outputs = self(*args, **kwargs)
            losses = self.losses if return_losses else None
        new = [scope.values[v] for v in own[1]]
        return (outputs, new, losses) if return_losses else (outputs, new)

    # --- configuration ---------------------------------------------------------------------------
    def get_config(self):
        """Return the constructor's arguments as plain data."""
        base = {
            "name": self.name,
            "trainable": self._trainable,
            "dtype": dtype_policies.serialize(self._policy),
        }
        if self.activity_regularizer is not None:
            base["activity_regularizer"] = registry.serialize(self.activity_regularizer)
        config = base
        if type(self).__init__ is not Layer.__init__:
            config = base | super().get_config()
        if config.get("activity_regularizer", 0) is None:
            del config["activity_regularizer"]
        config |= {k: v for k, v in self._keras_keys.items() if k not in config}
        for key in self._unsaved:
            config.pop(key, None)
        if not hasattr(type(self).__init__, "made"):  # written by hand, it may not take them all
            accepted = inspect.signature(type(self).__init__).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in accepted):
                config = {k: v for k, v in config.items() if k in {p.name for p in accepted}}
        return config

    def __getstate__(self):
        # a copy is without what belongs to a call or was made for this object alone
        return vars(self) | dict.fromkeys(_OF_ONE.split()) | {"_losses": []}

    def __repr__(self):
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"


Layer._call_spec = CallSpec(Layer, Layer)
