"""Hides the other frameworks, so that a backend's tests show that it needs none of them.

With KHUB_TEST_BLOCK_OTHERS=1 (set by `make test`) they look as if they were not installed.
"""

import sys

# Each backend's own packages.
PACKAGES = {
    "jax": {"jax", "jaxlib", "flax", "optax"},
    "torch": {"torch", "torchvision", "torchaudio"},
    "tensorflow": {"tensorflow", "tensorflow_text", "tensorflow_datasets", "tf_keras"},
    "numpy": set(),
}
REFERENCES = {"keras", "keras_hub", "transformers", "sentence_transformers", "diffusers", "timm"}


def others(backend):
    """Return the top-level modules that khub on `backend` has no business importing."""
    return REFERENCES.union(*(names for name, names in PACKAGES.items() if name != backend))


class _Without:
    """A finder on `sys.meta_path` that knows nothing of the `hidden` packages."""

    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def hide(packages):
    """Make `packages` look uninstalled; raises RuntimeError if one is already imported."""
    early = sorted(packages & sys.modules.keys())
    if early:
        raise RuntimeError(f"{', '.join(early)} cannot be hidden: imported before the tests began.")
    sys.meta_path[:] = [_Without(finder, packages) for finder in sys.meta_path]
