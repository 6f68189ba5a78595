"""Variables, gradients, control flow and random numbers on TensorFlow."""

import re
from contextlib import nullcontext

import optree
import tensorflow as tf
from tensorflow.python.autograph.core import config as autograph

from khub import tree
from khub.backend import eager
from khub.backend.scope import Resumed, Scope, local, within
from khub.backend.tensorflow.arrays import NATIVE, TENSORS, convert_to_tensor

EAGER = False  # whether jit leaves functions as they are
# a user's tf.function takes khub's code as it is: it has no branches on tensors to rewrite
autograph.CONVERSION_RULES = (autograph.DoNotConvert("khub"), *autograph.CONVERSION_RULES)


class Base(tf.__internal__.tracking.Trackable):
    """A trackable object (checkpoints, SavedModel) whose children are khub's own."""

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = {name: v.materialize() for name, v in self._own_variables().items()}
        for name, layer in self._children():
            if name not in children:
                children[name.replace(".", "_")] = layer
        for name, value in vars(self).items():
            trackable = isinstance(value, tf.__internal__.tracking.Trackable)
            if trackable or hasattr(value, "get_concrete_function"):
                children.setdefault(name, value)
        return children

    def _lookup_dependency(self, name, cached_dependencies=None):
        return self._trackable_children().get(name)


class OptimizerBase(Base):
    """The same of an optimizer: `tf.train.Checkpoint(model=model, optimizer=optimizer)`."""

    def _own_variables(self):
        return {str(i): variable for i, variable in enumerate(self.variables)}

    def _children(self):
        return ()


class VariableBase:
    """Lets a `tf.GradientTape` take khub's Variables: `tape.gradient(loss, variables)`."""

    _should_act_as_resource_variable = True

    @property
    def handle(self):
        """The handle of the `tf.Variable` that holds the value."""
        return self.materialize().handle


# --- Variables -----------------------------------------------------------------------------------
def new_storage(value, trainable, name, own=False):
    name = re.sub(r"\W|\d", "_", name)  # TensorFlow keeps a kernel for every name it has met
    with tf.init_scope():
        return tf.Variable(convert_to_tensor(value), trainable=trainable, name=name)


def read(storage):
    return storage.value()


def write(storage, value):
    storage.assign(value)
    return storage


def set_trainable(storage, trainable):
    pass  # gradients are asked for by Variable


def is_traced(x):
    return tf.is_tensor(x) and not tf.executing_eagerly() and hasattr(x, "graph")


def on_device(name):
    return tf.device(name)


def start_profile(folder):
    tf.profiler.experimental.start(folder)
    return tf.profiler.experimental.stop


def placeholder(shape, dtype):
    return tf.zeros(shape, NATIVE[dtype])


def abstract_eval(function, specs):
    graph = tf.__internal__.FuncGraph("abstract")
    with graph.as_default():
        return function(*[tf.compat.v1.placeholder(NATIVE[d], s) for s, d in specs])


no_gradient, inference, untraced = nullcontext, nullcontext, tf.init_scope


# --- transforms ----------------------------------------------------------------------------------
custom_gradient = tf.custom_gradient
_ARRAY = object()
_SHAPES = 4  # so many shapes get a graph of their own; the next ones share one with unknown sizes


def jit(function):
    """Compile to concrete functions of flat tensors: half the cost of calling a `tf.function`."""
    graphs, shapes_met = {}, {}

    def call(*args, **kwargs):
        if local.scope is not None or not tf.executing_eagerly():
            return function(*args, **kwargs)
        leaves, structure = optree.tree_flatten((args, kwargs), none_is_leaf=True, namespace="khub")
        tensors, key = [], [structure]
        for leaf in leaves:
            kind = type(leaf)
            if kind is bool or kind is str or leaf is None or hasattr(leaf, "_storage"):
                key.append(leaf)
                continue
            if kind not in TENSORS:
                leaf = convert_to_tensor(leaf)
            tensors.append(leaf)
            key.append((_ARRAY, leaf.dtype, leaf.shape.rank))
        key = tuple(key)
        shapes = tuple(tuple(x.shape) for x in tensors)
        graph = graphs.get((key, shapes)) or graphs.get((key, None))
        if graph is None:
            met = shapes_met.setdefault(key, [])
            met.append(shapes)
            graph = _trace(function, key, _relaxed(met) if len(met) > _SHAPES else shapes)
            graphs[key, None if len(met) > _SHAPES else shapes] = graph
        return graph(*tensors)

    call.__wrapped__ = function
    return call


def _relaxed(met):
    """Shapes with None for every size that differs among those met."""
    return [
        tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*one, strict=True))
        for one in zip(*met, strict=True)
    ]


def _trace(function, key, shapes):
    """Return the concrete function for arguments of this structure and these shapes."""

    def flat(*values):
        values = iter(values)
        filled = [next(values) if type(k) is tuple and k[0] is _ARRAY else k for k in key[1:]]
        args, kwargs = optree.tree_unflatten(key[0], filled)
        return function(*args, **kwargs)

    types = [k[1] for k in key[1:] if type(k) is tuple and k[0] is _ARRAY]
    specs = [tf.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    return tf.function(flat, autograph=False).get_concrete_function(*specs)


def value_and_grad(function, variables, has_aux):
    def call(*args, **kwargs):
        scope = None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if variables is None:
                sources = [convert_to_tensor(x) for x in tree.flatten(args[0])]
                args = (tree.pack_sequence_as(args[0], sources), *args[1:])
            elif local.scope is not None:
                sources = [tf.identity(local.scope.get(v)) for v in variables]
                scope = Scope(zip(variables, sources, strict=True), seal=tf.stop_gradient)
            else:
                sources = [v.materialize() for v in variables]
            for source in sources:
                tape.watch(source)
            result = within(scope, function, args, kwargs)
            loss = result[0] if has_aux else result
        gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
        if not local.sparse_gradients:
            gradients = [tf.convert_to_tensor(g) for g in gradients]  # IndexedSlices become dense
        if variables is None:
            gradients = tree.pack_sequence_as(args[0], gradients)
        return result, gradients

    return call


def jvp(function, primals, tangents, has_aux):
    with tf.autodiff.ForwardAccumulator(list(primals), list(tangents)) as accumulator:
        result = function(*primals)
    outputs, *aux = result if has_aux else (result,)
    zero = tf.UnconnectedGradients.ZERO
    return (outputs, tree.map_structure(lambda x: accumulator.jvp(x, zero), outputs), *aux)


def checkpoint(function):
    def call(*args):
        outer, before, after, then = local.scope, {}, {}, Resumed()
        # recompute_grad sees arguments and tf.Variables; what a scope holds becomes an argument
        read = [] if outer is None else list(_probe(function, *args)[1].read)

        first = [True]

        def run(given, *args):
            values = dict(zip(read, given, strict=True)) | before
            again = nullcontext() if first else then  # with the state that the first run saw
            with again, Scope(values) as scope:
                result = function(*args)
            if first:
                first.clear()
                for variable in scope.written:
                    before[variable] = variable._uncast()
                    after[variable] = scope.values[variable]
            return result

        result = tf.recompute_grad(run)([outer.get(v) for v in read], *args)
        for variable, value in after.items():
            variable.assign(value)
        return result

    return call


def vmap(function, in_axes, out_axes):
    def to_front(x, axis):
        return x if axis == 0 else tree.map_structure(lambda t: _move(t, axis, 0), x)

    def mapped(*args):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else tuple(in_axes)
        given = [to_front(a, axis) for a, axis in zip(args, axes, strict=True) if axis is not None]

        def one(slices):
            slices = iter(slices)
            return function(
                *(a if x is None else next(slices) for a, x in zip(args, axes, strict=True))
            )

        result = tf.vectorized_map(one, tuple(given))
        return tree.map_structure(lambda t: t if out_axes == 0 else _move(t, 0, out_axes), result)

    return mapped


def _move(x, source, destination):
    order = [axis for axis in range(x.shape.rank) if axis != source % x.shape.rank]
    order.insert(destination % x.shape.rank, source % x.shape.rank)
    return tf.transpose(x, order)


def cond(pred, true_fn, false_fn):
    return switch(tf.cast(tf.cast(pred, tf.bool), tf.int32), (false_fn, true_fn))


def switch(index, branches):
    if tf.executing_eagerly():
        return branches[int(index)]()
    written = {v: None for branch in branches for v in _written(branch)}

    def branch(function):
        def run():
            with _inner_scope() as scope:
                return function(), [scope.get(v) for v in written]

        return run

    if not written:
        return tf.switch_case(index, branches)
    result, values = tf.switch_case(index, [branch(function) for function in branches])
    _assign(written, values)
    return result


def _probe(function, *args):
    """Run `function` in a graph that is thrown away; return its result and its Scope."""
    with (
        tf.__internal__.FuncGraph("probe").as_default(),
        Scope(abstract=lambda v: tf.zeros(v.shape, NATIVE[v.dtype])) as scope,
    ):
        return function(*args), scope


def _written(function, *args):
    """The scope's Variables that a branch or body assigns: they leave its graph as results."""
    if local.scope is None:
        return {}
    scope = _probe(function, *args)[1]
    for variable in (*scope.read, *scope.written):
        local.scope.get(variable)  # out here: no tensor of the branch's graph can leave it
    return scope.written


def _inner_scope(values=()):
    return Scope(values, seal=local.scope.seal)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        local.scope.set(variable, value)


def while_loop(cond, body, loop_vars, maximum_iterations):
    if tf.executing_eagerly():
        return tf.while_loop(cond, body, loop_vars, maximum_iterations=maximum_iterations)
    written = _written(body, *loop_vars)
    if not written:
        return tf.while_loop(cond, body, loop_vars, maximum_iterations=maximum_iterations)

    def proceed(values, *loop):
        with _inner_scope(zip(written, values, strict=True)):
            return cond(*loop)

    def advance(values, *loop):
        with _inner_scope(zip(written, values, strict=True)) as scope:
            loop = body(*loop)
        return [scope.values[v] for v in written], *loop

    start = [local.scope.get(v) for v in written]
    values, *loop_vars = tf.while_loop(
        proceed, advance, (start, *loop_vars), maximum_iterations=maximum_iterations
    )
    _assign(written, values)
    return tuple(loop_vars)


def scan(function, init, xs, length, reverse):
    def at(i):
        return None if xs is None else tree.map_structure(lambda x: x[i], xs)

    if tf.executing_eagerly() or isinstance(length, int) and length <= 8:
        return eager.scan(function, init, xs, length, reverse, tf.stack)
    leaves = tree.flatten(init)
    (_, sample), scope = _probe(lambda: function(init, at(0)))
    written = {} if local.scope is None else scope.written
    for variable in scope.read if local.scope is not None else ():
        local.scope.get(variable)
    state = [local.scope.get(v) for v in written]
    rows = [] if sample is None else tree.flatten(sample)
    arrays = [tf.TensorArray(y.dtype, length, element_shape=y.shape) for y in rows]
    # read from arrays: the gradient of a slice would be as large as the whole, at every step
    given = xs
    if xs is not None:
        given = tree.map_structure(lambda x: tf.TensorArray(x.dtype, length).unstack(x), xs)

    def body(step, flat, arrays, state):
        i = length - 1 - step if reverse else step
        x = None if xs is None else tree.map_structure(lambda array: array.read(i), given)
        with _inner_scope(zip(written, state, strict=True)) if written else nullcontext() as scope:
            carry, y = function(tree.pack_sequence_as(init, flat), x)
        ys = [] if y is None else tree.flatten(y)
        arrays = [a.write(i, v) for a, v in zip(arrays, ys, strict=True)]
        return step + 1, tree.flatten(carry), arrays, [scope.values[v] for v in written]

    _, flat, arrays, state = tf.while_loop(
        lambda step, *_: step < length,
        body,
        (tf.constant(0), leaves, arrays, state),
        maximum_iterations=length,  # so that XLA knows how much the gradient has to keep
        parallel_iterations=1,  # each needs the one before; to look for others takes 5 % of an LSTM
    )
    _assign(written, state)
    ys = None if sample is None else tree.pack_sequence_as(sample, [a.stack() for a in arrays])
    return tree.pack_sequence_as(init, flat), ys


# --- random numbers: `seed` is a pair of integers ------------------------------------------------
SEED_DTYPE = "int32"


def make_generator(seed):
    return tf.constant([_signed(seed >> 32), _signed(seed)], tf.int32)


def _signed(bits):
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits >> 31 else bits


def next_seed(seeds):
    state = seeds.state.value
    seeds.state.assign(state + tf.constant([0, 1], tf.int32))
    return state


def random_uniform(shape, minval, maxval, dtype, seed):
    return tf.random.stateless_uniform(shape, seed, minval, maxval, NATIVE[dtype])


def random_normal(shape, mean, stddev, dtype, seed):
    return tf.random.stateless_normal(shape, seed, mean, stddev, NATIVE[dtype])


def random_gamma(alpha, seed):
    return tf.random.stateless_gamma(tf.shape(alpha), seed, alpha)


def random_binomial(counts, probabilities, seed):
    return tf.random.stateless_binomial(tf.shape(counts), seed, counts, probabilities, tf.float32)


def random_integers(shape, minval, maxval, dtype, seed):
    numbers = tf.random.stateless_uniform(shape, seed, minval, maxval, tf.int64)
    return tf.cast(numbers, NATIVE[dtype])
