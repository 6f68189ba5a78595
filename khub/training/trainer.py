"""compile, fit, evaluate, predict: one loop for every backend.

A step is an ordinary function that reads and assigns Variables; `khub.jit` compiles it.
State lives in plain objects (`Compiled`), functions are built once and kept across calls.
"""

import inspect
import itertools
import sys
import warnings
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from khub import config, dtypes, ops, tree
from khub.backend import active
from khub.backend.scope import sparse_gradients
from khub.layers.layer import Layer
from khub.ops.core import jit, value_and_grad
from khub.ops.symbolic import KerasTensor, output_spec
from khub.random import next_initial_seed
from khub.training import data as data_module
from khub.training.callbacks import Callback, CallbackList, History, Logs
from khub.training.compiled import Compiled
from khub.training.data import pack_x_y_sample_weight, unpack_x_y_sample_weight

_TENSORS = active.TENSORS


class Trainer:
    """The part of a Model that trains it."""

    _compiled = None
    stop_training = stop_evaluating = stop_predicting = False

    # --- compile ---------------------------------------------------------------------------------
    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
    ):
        """Say how the model is trained.

        optimizer, loss, metrics: names or objects, per output as lists or dicts; run_eagerly: no
        compilation; steps_per_execution: batches in one dispatch; auto_scale_loss: mixed_float16
        gets dynamic loss scaling
        """
        from khub.optimizers import LossScaleOptimizer, get

        optimizer = get(optimizer)
        scaled = self.dtype_policy.name == "mixed_float16" and auto_scale_loss
        if scaled and not isinstance(optimizer, LossScaleOptimizer):
            optimizer = LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        if not isinstance(steps_per_execution, int) or steps_per_execution < 1:
            raise ValueError(
                f"steps_per_execution must be a positive integer, got {steps_per_execution!r}."
            )
        options = {
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
        }
        self._compiled = Compiled(optimizer, loss, loss_weights, metrics, weighted_metrics, options)
        self.stop_training = False
        self.forget_functions()

    def forget_functions(self):
        """Make all that was compiled anew at its next call: layers have changed."""
        self.train_function = self.test_function = self.predict_function = None

    @property
    def compiled(self):
        """Whether `compile` was called."""
        return self._compiled is not None

    @property
    def optimizer(self):
        """The optimizer, None before `compile`."""
        return self._compiled.optimizer if self._compiled is not None else None

    @property
    def loss(self):
        """The loss that was compiled."""
        return self._compiled.loss if self._compiled is not None else None

    @property
    def run_eagerly(self):
        """Whether steps run without compilation."""
        return self._compiled is not None and self._compiled.options["run_eagerly"]

    @property
    def metrics(self):
        """The means of the losses, what `compile` was given, as one, and the layers' attributes."""
        given = [] if self._compiled is None else self._compiled.metrics(self)
        built = {id(m) for _, m, _ in (given and self._compiled.built) or ()}
        return given + [m for m in super().metrics if id(m) not in built]

    @property
    def metrics_names(self):
        """The names of the metrics."""
        return [m.name for m in self.metrics]

    def reset_metrics(self):
        """Start all metrics anew."""
        for metric in self.__dict__.get("_metrics") or self.metrics:
            metric.reset_state()

    def get_metrics_result(self):
        """Return name -> value of all metrics."""
        logs = {}
        if self.__dict__.get("_metrics") is None:  # looked up once a train function
            self._metrics = self.metrics
        for metric in self._metrics:
            value = metric.result()
            logs.update(value if isinstance(value, dict) else {metric.name: value})
        return logs

    def _require_compile(self, what):
        if self._compiled is None:
            raise ValueError(f"Call {self.name}.compile(optimizer, loss) before {what}().")

    # --- steps, which users may override ---------------------------------------------------------
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the scalar loss of a batch: the compiled losses and what layers added."""
        loss = self._compiled.compute_loss(self, y, y_pred, sample_weight)
        for value in self._extra_losses():
            loss = value if loss is None else loss + value
        if loss is None:
            raise ValueError(
                f"{self.name} has nothing to minimize: compile it with a loss, or add_loss()."
            )
        return loss

    def _extra_losses(self):
        """Return what layers added in the latest call and the penalties of regularized weights."""
        state = self._collected()
        added = [value for layer in (self, *state.below) for value in layer._losses]
        return added + [v.regularizer(v.value) for v in state.regularized]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics with a batch and return name -> value of all."""
        self._compiled.update_metrics(self, y, y_pred, sample_weight)
        return self.get_metrics_result()

    def train_step(self, data):
        """Train on one batch and return name -> value of the metrics."""
        x, y, sample_weight = unpack_x_y_sample_weight(data)
        variables = self._collected().trained

        def forward():
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, **self._mode(True))
            return self.optimizer.scale_loss(loss), (loss, y_pred)

        with sparse_gradients(self.optimizer.takes_rows):
            (_, (loss, y_pred)), gradients = value_and_grad(forward, variables, has_aux=True)()
        self.optimizer.apply(gradients, variables)
        self._compiled.loss_tracker.update_state(loss, sample_weight=_rows(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, data):
        """Evaluate one batch and return name -> value of the metrics."""
        x, y, sample_weight = unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        loss = self.compute_loss(x, y, y_pred, sample_weight, **self._mode(False))
        self._compiled.loss_tracker.update_state(loss, sample_weight=_rows(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _mode(self, training):
        """The argument `training` of a `compute_loss` that has it; a user's own may not."""
        return {"training": training} if self._collected().takes_training else {}

    def predict_step(self, data):
        """Return the outputs for one batch."""
        x, _, _ = unpack_x_y_sample_weight(data)
        return self(x, training=False)

    def _collected(self):
        """Return layers below and Variables as they were when the train function was built."""
        state = self.__dict__.get("_training_state")
        if state is None:
            trained = self.trainable_variables
            takes = inspect.signature(self.compute_loss).parameters
            state = self._training_state = SimpleNamespace(
                below=list(self.named_layers().values())[1:],
                trained=trained,
                regularized=[v for v in trained if v.regularizer is not None],
                takes_training=bool({"training", "kwargs"} & takes.keys()),
            )
        return state

    # --- functions -------------------------------------------------------------------------------
    def _step_function(self, name):
        """Return a step over one batch, or over a list of them, to be called again and again."""
        strings = any(getattr(layer, "_host_only", False) for layer in self.named_layers().values())
        eager = (self.run_eagerly or strings) and not active.EAGER  # whose jit compiles nothing

        # weakly: a model that keeps what keeps it waits for the garbage collector, with its graphs
        own, order, given = weakref.ref(self), [], getattr(self, name)
        theirs = getattr(given, "__func__", None) is not getattr(Trainer, name)
        # a user's own may call `loss.backward()`
        guard = nullcontext if theirs and name == "train_step" else active.no_gradient
        step = _weak(given)
        if _takes_state(given):
            step = _of_data(step, own, name)

        def run(batches):
            for batch in batches:
                logs = step(pack_x_y_sample_weight(*batch))  # "x, y = data" in a user's step
            if any(isinstance(value, dict) for value in logs.values()):
                parts = (v if isinstance(v, dict) else {k: v} for k, v in logs.items())
                logs = {k: v for part in parts for k, v in part.items()}
            order[:] = logs
            if not active.EAGER:
                own()._forget_losses()
            return logs

        function = step if name == "predict_step" else run
        compiled = function if eager else jit(function)

        def call(argument):
            with guard():
                result = own()._dispatch(compiled, argument)
            if order and not active.EAGER:  # compilers sort the keys; the loss comes first
                return {name: result[name] for name in order}
            return result

        return call

    def _forget_losses(self):
        """Let go what layers added while they were traced: it has no value outside."""
        for layer in self.named_layers().values():
            layer._losses = []

    def _dispatch(self, compiled, argument):
        return compiled(argument)  # khub.distribution has its own in place of this

    def make_train_function(self, force=False):
        """Build the function `fit` calls for each batch."""
        if self.train_function is None or force:
            self._training_state, self._metrics = None, None
            self.train_function = self._step_function("train_step")
        return self.train_function

    def make_test_function(self, force=False):
        """Build the function `evaluate` calls for each batch."""
        if self.__dict__.get("test_function") is None or force:
            self._metrics = None
            self.test_function = self._step_function("test_step")
        return self.test_function

    def make_predict_function(self, force=False):
        """Build the function `predict` calls for each batch."""
        if self.__dict__.get("predict_function") is None or force:
            self.predict_function = self._step_function("predict_step")
        return self.predict_function

    def _get_ready(self, step, x):
        """Build all layers, once for a step: to look through them takes as long as small models."""
        if not hasattr(step, "ready"):
            if not self._is_ready():
                self._build_on(x)
            step.ready = True

    def _prepare_training(self, step, batch):
        """Make every Variable of model and optimizer before the first step is traced."""
        x, y, _ = unpack_x_y_sample_weight(batch)
        self._get_ready(step, x)
        if self._compiled.built is None and any(
            map(_takes_state, (self.train_step, self.test_step))
        ):
            self._compiled.build_metrics(self, y, self._build_on(x))
        optimizer = self.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)

    def _is_ready(self):
        """Whether all is built, or all but a model whose own step calls its parts (a GAN)."""
        waiting = [layer for layer in self.named_layers().values() if not layer.built]
        own_step = any(
            getattr(type(self), name) is not getattr(Trainer, name)
            for name in ("train_step", "test_step")
        )
        return not waiting or own_step and waiting == [self] and type(self).build is Layer.build

    def _build_on(self, x):
        """Build what is not built yet and return the outputs, of symbols shaped like a batch."""

        def symbol(leaf):
            if leaf is None:
                return None
            return KerasTensor(tuple(np.shape(leaf)), _dtype(leaf))

        return output_spec(self, (tree.map_structure(symbol, x),), {})

    # --- fit -------------------------------------------------------------------------------------
    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
        validation_split=0.0, validation_data=None, shuffle=True, class_weight=None,
        sample_weight=None, initial_epoch=0, steps_per_epoch=None, validation_steps=None,
        validation_batch_size=None, validation_freq=1,
    ):  # fmt: skip
        """Train for a number of epochs and return the `History`.

        x, y: arrays (nested too), or x an iterable of batches; validation_data: an iterable or
        (x, y[, sample_weight]); class_weight: class -> weight; steps_per_epoch: for iterables
        without an end
        """
        self._require_compile("fit")
        seed = next_initial_seed() if shuffle else 0
        source = data_module.source(
            x, y, sample_weight, batch_size, shuffle, seed, steps_per_epoch, class_weight
        )
        if validation_split and validation_data is None:
            if not isinstance(source, data_module.ArraySource):
                raise ValueError(
                    "validation_split needs arrays; pass validation_data beside an iterable."
                )
            source, validation_data = source.split(validation_split)
        goes_on = bool(steps_per_epoch) or not source.again
        steps_per_epoch = data_module.capped(steps_per_epoch, source)
        epochs = min(epochs, initial_epoch + (config.max_epochs() or epochs))
        steps = steps_per_epoch or source.num_batches
        callbacks = self._callbacks(callbacks, verbose, True, epochs=epochs, steps=steps)
        step = self.make_train_function()
        per_call = self._compiled.options["steps_per_execution"]
        self.stop_training = False
        self._compiled.running = running = SimpleNamespace(source=source, callbacks=callbacks)
        running.rare = validation_data is not None and validation_freq != 1
        running.passed = 0  # batches of the iteration under way that earlier epochs took
        if isinstance(source, data_module.ArraySource) and not self._is_raw(source.x):
            self._compiled.labels = source.y
        with self._compiled.letting_go():
            callbacks.call("on_train_begin", {})
            batches, done, logs = None, 0, {}
            resume, self._compiled.resume = self._compiled.resume, None
            if resume is not None:
                batches = resume.begin(self, step)
                initial_epoch, done = resume.epoch, resume.batch
                epochs = 0 if resume.state["stop"] else epochs
            for epoch in range(initial_epoch, epochs):
                self.reset_metrics()
                callbacks.call("on_epoch_begin", epoch, {})
                if done:
                    resume.restore(self)
                if not done:
                    batches = self._left(batches, source)
                logs, done = self._run_epoch(
                    batches, step, per_call, steps_per_epoch, callbacks, "train", source, done
                )
                running.passed = running.passed + done if goes_on else 0
                batches, done = batches if goes_on else None, 0
                logs = dict(Logs(logs).items())
                if validation_data is not None and _is_due(epoch, validation_freq):
                    held = unpack_x_y_sample_weight(validation_data)
                    options = {"batch_size": validation_batch_size or batch_size, "verbose": 0}
                    options |= {"steps": validation_steps, "callbacks": callbacks}
                    options |= {"sample_weight": held[2], "return_dict": True}
                    results = self.evaluate(*held[:2], **options)
                    logs.update({f"val_{name}": value for name, value in results.items()})
                callbacks.call("on_epoch_end", epoch, logs)
                if self.stop_training:
                    break
            if self.optimizer is not None:
                self.optimizer.finalize_variable_values(self._collected().trained)
            callbacks.call("on_train_end", logs)
        return self.history

    def _left(self, batches, source):
        """Return the batches left of an iteration or, where there are none, those of a new one."""
        first = None if batches is None else next(batches, None)
        if first is not None:
            return itertools.chain([first], batches)
        self._compiled.running.passed = 0
        return self._batches(source)

    def _callbacks(self, given, verbose, add_history=False, epochs=1, **params):
        if verbose == "auto" and not config.is_interactive_logging_enabled():
            verbose = 2  # a line at the end, not redrawn
        if not isinstance(given, CallbackList):
            given = [given] if isinstance(given, Callback) else list(given or ())
            params |= {"verbose": verbose, "epochs": epochs}
            return CallbackList(given, add_history, bool(verbose), self, **params)
        if add_history and given.find(History) is None:
            given.append(History())
        given.set_model(self)
        return given

    def _is_raw(self, x):
        """Whether the preprocessor takes `x`: it may say so by `is_raw(x)`, without that texts."""
        preprocessor = self.__dict__.get("preprocessor")
        is_raw = getattr(preprocessor, "is_raw", data_module.is_raw_texts)
        return preprocessor is not None and is_raw(x)

    def _batches(self, source, preprocess=None):
        """Iterate over the batches, preprocessed in a thread where there is a preprocessor.

        preprocess: what to call in its place
        """
        preprocessor = self.__dict__.get("preprocessor")

        def prepare(batch):
            x, y, weight = batch
            if self._is_raw(x):
                return unpack_x_y_sample_weight((preprocess or preprocessor)(x, y, weight))
            return batch

        if preprocessor is None and isinstance(source, data_module.ArraySource):
            data_module.refuse_objects(source)
        if preprocessor is not None or not isinstance(source, data_module.ArraySource):
            return data_module.prefetch(source, prepare)
        return iter(source)

    def _run_epoch(self, batches, step, per_call, limit, callbacks, kind, source, done=0):
        """Return (logs, number of batches) after at most `limit` of them."""
        stop = {"train": "stop_training", "test": "stop_evaluating"}[kind]
        begins, ends = (callbacks.has(f"on_{kind}_batch_{edge}") for edge in ("begin", "end"))
        logs, start, compiled = self.get_metrics_result() if done else {}, done, self._compiled
        batches = itertools.islice(batches, limit and limit - done)
        while group := list(itertools.islice(batches, per_call)):
            compiled.batch = group[0]
            if done == start:
                self._prepare_training(step, group[0])
                compiled.check_labels()
            if begins:
                callbacks.call(f"on_{kind}_batch_begin", done, {})
            logs = step(group)
            done += len(group)
            if ends:
                callbacks.call(f"on_{kind}_batch_end", done - 1, Logs(logs))
            if getattr(self, stop):
                break
        compiled.batch = None
        if done == 0:
            raise ValueError("The data gave no batch; an iterator is used up after one epoch.")
        if limit and done < limit and not getattr(self, stop):
            text = f"The data ended after {done} of {limit} batches."
            if not source.again:
                raise ValueError(text)
            warnings.warn(text, stacklevel=3)
        return logs, done

    # --- evaluate and predict --------------------------------------------------------------------
    def evaluate(
        self, x=None, y=None, batch_size=None, verbose="auto", sample_weight=None, steps=None,
        callbacks=None, return_dict=False, **kwargs,
    ):  # fmt: skip
        """Return the loss and metrics over the data: a number, a list, or a dict if asked for."""
        self._require_compile("evaluate")
        if kwargs:
            raise ValueError(f"evaluate does not know {', '.join(kwargs)}.")
        source = data_module.source(x, y, sample_weight, batch_size, False, 0, steps)
        steps = data_module.capped(steps, source)
        callbacks = self._callbacks(callbacks, verbose, steps=steps or source.num_batches)
        step = self.make_test_function()
        self.stop_evaluating = False
        self.reset_metrics()
        callbacks.call("on_test_begin", {})
        batches, per_call = self._batches(source), self._compiled.options["steps_per_execution"]
        logs, _ = self._run_epoch(batches, step, per_call, steps, callbacks, "test", source)
        logs = dict(Logs(logs).items())
        callbacks.call("on_test_end", logs)
        return self._results(logs, return_dict)

    @staticmethod
    def _results(logs, return_dict):
        if return_dict:
            return logs
        values = list(logs.values())
        return values[0] if len(values) == 1 else values

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Return the outputs for all rows of the data as NumPy arrays."""
        step = self.make_predict_function()
        plain = not verbose and callbacks is None and steps is None and type(x) is np.ndarray
        plain = plain and not self._is_raw(x)
        if plain and len(x) <= (batch_size or 32) and x.dtype.kind in "fiub" and x.itemsize < 8:
            # one row at a time is served without sources and callbacks
            outputs = step(active.convert_to_tensor(x) if active.EAGER else x)
            if type(outputs) in _TENSORS:
                return active.convert_to_numpy(outputs)
            return tree.map_structure(active.convert_to_numpy, outputs)
        source = data_module.source(x, None, None, batch_size, False, 0, steps)
        steps = data_module.capped(steps, source)
        callbacks = self._callbacks(callbacks, verbose, steps=steps or source.num_batches)
        callbacks.call("on_predict_begin", {})
        parts, wants, self.stop_predicting = [], callbacks.has("on_predict_batch_end"), False
        for i, batch in enumerate(self._batches(source)):
            if self.stop_predicting or steps is not None and i >= steps:
                break
            if i == 0:
                self._get_ready(step, batch[0])
            callbacks.call("on_predict_batch_begin", i, {})
            outputs = step(batch[0] if not isinstance(batch[0], (list, tuple)) else (batch[0],))
            parts.append(tree.map_structure(active.convert_to_numpy, outputs))
            if wants:
                callbacks.call("on_predict_batch_end", i, {"outputs": parts[-1]})
        callbacks.call("on_predict_end", {})
        if not parts:
            raise ValueError("The data gave no batch to predict.")
        if len(parts) == 1:
            return parts[0]
        return tree.map_structure(lambda *rows: np.concatenate(rows), *parts)

    # --- one batch at a time ---------------------------------------------------------------------
    def _one_batch(self, function, x, y, sample_weight, return_dict):
        source = data_module.ArraySource(x, y, sample_weight, sys.maxsize, False, 0)
        self._compiled.batch = batch = next(iter(self._batches(source)))
        self._prepare_training(function, batch)
        self.reset_metrics()
        logs = dict(Logs(function([batch])).items())
        return self._results(logs, return_dict)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Train on one batch and return its loss and metrics."""
        self._require_compile("train_on_batch")
        if class_weight is not None:
            sample_weight = data_module.class_weights(class_weight, y, sample_weight)
        return self._one_batch(self.make_train_function(), x, y, sample_weight, return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Evaluate one batch and return its loss and metrics."""
        self._require_compile("test_on_batch")
        return self._one_batch(self.make_test_function(), x, y, sample_weight, return_dict)

    def predict_on_batch(self, x):
        """Return the outputs for one batch as NumPy arrays."""
        return self.predict(x, batch_size=len(tree.flatten(x)[0]), verbose=0)


def _takes_state(step):
    """Whether a step is of the kind that Keras' users write for JAX: (state, data) -> both."""
    return len(inspect.signature(step).parameters) > 1


def _of_data(step, model, name):
    """Return such a step as one of the data alone; model: gives it."""

    def run(data):
        parts = [model().trainable_variables, model().non_trainable_variables]
        if name == "train_step":
            parts.append(model().optimizer.variables)
        if name != "predict_step":
            parts.append([v for metric in model().metrics for v in metric.variables])
        result, state = step(tuple([v.value for v in part] for part in parts), data)
        for variable, value in zip(tree.flatten(parts), tree.flatten(state), strict=True):
            variable.assign(value)
        return result

    return run


def _weak(step):
    """A step, which does not keep its model."""
    if not hasattr(step, "__self__"):
        return step
    found = weakref.WeakMethod(step)
    return lambda *args: found()(*args)


def _is_due(epoch, frequency):
    """Whether an epoch ends with validation; frequency: every so many, or their numbers from 1."""
    if isinstance(frequency, int):
        return (epoch + 1) % frequency == 0
    return epoch + 1 in frequency


def _rows(x):
    return ops.shape(tree.flatten(x)[0])[0]


def _dtype(leaf):
    if getattr(getattr(leaf, "dtype", None), "kind", "") in ("O", "U", "S"):
        return "string"
    name = dtypes.standardize(leaf.dtype) if hasattr(leaf, "dtype") else "float32"
    return "float32" if name == "float64" else name
