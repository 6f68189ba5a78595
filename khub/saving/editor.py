"""Weights of a file as a dictionary that may be changed and written again."""

import re

import numpy as np

from khub.saving import archive, h5
from khub.saving.files import replacing
from khub.saving.weights import entries


class KerasFileEditor:
    """Shows and changes the weights in a .keras or .weights.h5 file, without its model.

    weights: path of an object -> name -> array
    Objects are given by their paths, "layers/dense_1", or the last part where one alone has it.
    Raises ValueError for an unknown one.
    """

    def __init__(self, filepath):
        with archive.arrays(filepath) as (_, found):
            self.weights = {path: {k: a.read() for k, a in v.items()} for path, v in found.items()}

    def _find(self, name):
        parts = [path.split("/") for path in self.weights]
        paths = {"/".join(p[: i + 1]) for p in parts for i in range(len(p))}
        found = [path for path in paths if name in (path, path.rpartition("/")[2])]
        if len(found) != 1:
            raise ValueError(f"{name!r} must be one object of the file, which has {sorted(paths)}.")
        return found[0]

    def summary(self):
        """Print the names and shapes."""
        for path, arrays in self.weights.items():
            print(path, {name: array.shape for name, array in arrays.items()})

    def compare(self, reference_model):
        """Print what a model has otherwise; return {"status", "error_count", "match_count"}."""
        sides = [
            {f"{path}/{name}": np.shape(a) for path, v in side.items() for name, a in v.items()}
            for side in (self.weights, {path: v for path, _, v in entries(reference_model)})
        ]
        wrong = [n for n in sides[0] | sides[1] if sides[0].get(n) != sides[1].get(n)]
        for name in wrong:
            print(name, *(f"{s.get(name)} in the {w}" for s, w in zip(sides, ("file", "model"))))
        count = {"error_count": len(wrong), "match_count": len(sides[1].keys() - wrong)}
        return {"status": "error" if wrong else "success", **count}

    def add_object(self, object_path, weights):
        """Add an object.  weights: name -> array"""
        self.weights[object_path] = dict(weights)

    def delete_object(self, object_name):
        """Remove an object and all below it."""
        found = f"{self._find(object_name)}/"
        self.weights = {p: v for p, v in self.weights.items() if not f"{p}/".startswith(found)}

    def rename_object(self, object_name, new_name):
        """Give an object another name, or another path."""
        old = self._find(object_name)
        new = new_name if "/" in new_name else f"{old.rpartition('/')[0]}/{new_name}".lstrip("/")
        begin = re.compile(f"{re.escape(old)}(?=/|$)")
        self.weights = {begin.sub(new, p, 1): v for p, v in self.weights.items()}

    def add_weights(self, object_name, weights):
        """Add arrays to an object.  weights: name -> array"""
        self.weights.setdefault(self._find(object_name), {}).update(weights)

    def delete_weight(self, object_name, weight_name):
        """Remove one array of an object."""
        del self.weights[self._find(object_name)][weight_name]

    def save(self, filepath):
        """Write a .weights.h5 file."""
        with replacing(filepath) as temporary:
            h5.write(temporary, [(p, p.rpartition("/")[2], v) for p, v in self.weights.items()])

    resave_weights = save
