"""Models as scikit-learn's estimators: in pipelines, cross validation and searches."""

import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from khub.models import Model, clone_model
from khub.saving import load_model


def _file_of(model):
    """A function that gives the model again, of the bytes of its file, which pickle takes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return partial(_model_of, Path(folder, "model.keras").read_bytes())


def _model_of(content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.keras").write_bytes(content)
        return load_model(f"{folder}/model.keras")


@cache
def _classes():
    """The classes, made when scikit-learn is first needed.  Raises ImportError without it."""
    try:
        from sklearn import base
        from sklearn.utils import column_or_1d, multiclass
        from sklearn.utils.validation import check_is_fitted, validate_data
    except ImportError as error:
        raise ImportError("khub.wrappers needs it: pip install khub[sklearn]") from error

    class SKLBase:
        """A model that is fitted and asked as scikit-learn does it.

        model: a compiled model, cloned before it is fitted unless `warm_start`, or a function of
        (X, y, **model_kwargs) that returns one   fit_kwargs: for `model.fit`
        """

        def __init__(self, model, warm_start=False, model_kwargs=None, fit_kwargs=None):
            self.model, self.warm_start = model, warm_start
            self.model_kwargs, self.fit_kwargs = model_kwargs, fit_kwargs

        def fit(self, X, y, **kwargs):
            """Fit the model; kwargs: for `model.fit`, they come before `fit_kwargs`."""
            numeric = not base.is_classifier(self)
            X, y = validate_data(self, X, y, multi_output=True, y_numeric=numeric)
            y = self._targets(y)
            if not self.warm_start or not hasattr(self, "model_"):
                self.model_ = self._made(X, y)
            self.history_ = self.model_.fit(X, y, **(self.fit_kwargs or {}) | kwargs).history
            return self

        def _made(self, X, y):
            model = self.model
            if not isinstance(model, Model):
                model = model(X=X, y=y, **(self.model_kwargs or {}))
            if not model.compiled:
                raise ValueError(f"{type(self).__name__} needs a compiled model: compile() first.")
            if model is self.model and not self.warm_start:
                model = clone_model(model)
                model.compile_from_config(self.model.get_compile_config())
            return model

        def predict(self, X):
            """Return the predictions in the form of the targets."""
            return self._outputs(X).reshape(-1, *self._shape)

        def _outputs(self, X):
            check_is_fitted(self, "model_")
            return self.model_.predict(validate_data(self, X, reset=False), verbose=0)

        def _targets(self, y):
            y = column_or_1d(y, warn=True) if y.shape[1:] == (1,) else y
            self._shape = y.shape[1:]
            return y.reshape(len(y), -1)

        def __getstate__(self):
            return {k: _file_of(v) if isinstance(v, Model) else v for k, v in vars(self).items()}

        def __setstate__(self, state):
            files = {k: v() for k, v in state.items() if getattr(v, "func", None) is _model_of}
            vars(self).update(state | files)

        @property
        def epoch_(self):
            """How many epochs the latest `fit` took."""
            return len(next(iter(self.history_.values())))

        def set_fit_request(self, **kwargs):
            """Say which arguments of `fit` scikit-learn may route to it."""
            self._metadata_request = self._get_metadata_request()
            for name, alias in kwargs.items():
                self._metadata_request.fit.add_request(param=name, alias=alias)
            return self

        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.non_deterministic = True
            for part in filter(None, (tags.classifier_tags, tags.regressor_tags)):
                part.poor_score = True
            if tags.transformer_tags is not None:
                tags.transformer_tags.preserves_dtype = []
            return tags

    class SKLearnClassifier(SKLBase, base.ClassifierMixin, base.BaseEstimator):
        def _targets(self, y):
            multiclass.check_classification_targets(y)
            self.classes_, places = np.unique(column_or_1d(y, warn=True), return_inverse=True)
            return np.eye(len(self.classes_), dtype="float32")[places]

        def predict(self, X):
            """Return the most likely classes."""
            places = self._outputs(X).argmax(-1)
            return self.classes_[places]

        def decision_function(self, X):
            """Return the model's outputs; of two classes what the second has more than the first"""
            outputs = self._outputs(X)
            return outputs[:, 1] - outputs[:, 0] if outputs.shape[1:] == (2,) else outputs

    class SKLearnRegressor(SKLBase, base.RegressorMixin, base.BaseEstimator):
        pass

    class SKLearnTransformer(SKLBase, base.TransformerMixin, base.BaseEstimator):
        def transform(self, X):
            """Return the model's outputs."""
            return self._outputs(X)

    made = SKLearnClassifier, SKLearnRegressor, SKLearnTransformer
    for cls in made:
        cls.__qualname__, cls.__doc__ = cls.__name__, SKLBase.__doc__
    return {cls.__name__: cls for cls in made}


def __getattr__(name):
    if name in ("SKLearnClassifier", "SKLearnRegressor", "SKLearnTransformer"):
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
