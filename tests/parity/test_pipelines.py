"""Preprocessing layers in the data pipelines that people have, on every backend.

Here, and not in the backend's own suite, since the pipelines belong to other frameworks.
"""

import numpy as np
import pytest

import khub
from khub import layers, ops

IMAGES = np.random.RandomState(0).randint(0, 256, (6, 12, 10, 3)).astype("uint8")
TEXTS = ["a good film", "no good", "a film, a film!", "the end", "good good", "nothing"]
NUMBERS = np.random.RandomState(1).randn(6, 3).astype("float32")


def normalization():
    layer = layers.Normalization()
    layer.adapt(NUMBERS)
    return layer


def vectorizer():
    layer = layers.TextVectorization(output_sequence_length=5)
    layer.adapt(TEXTS)
    return layer


CASES = {  # name -> how the layer is made, data, whether it takes single rows too
    "resizing": (lambda: layers.Resizing(6, 5), IMAGES),
    "rescaling": (lambda: layers.Rescaling(1 / 255), IMAGES),
    "crop": (lambda: layers.CenterCrop(6, 6), IMAGES),
    "flip": (lambda: layers.RandomFlip(seed=1), IMAGES),
    "rotation": (lambda: layers.RandomRotation(0.2, seed=1), IMAGES),
    "contrast": (lambda: layers.RandomContrast(0.5, seed=1), IMAGES),
    "augment": (lambda: layers.RandAugment(seed=1), IMAGES),
    "pipeline": (
        lambda: layers.Pipeline([layers.RandomCrop(8, 8, seed=1), layers.Resizing(4, 4)]),
        IMAGES,
    ),
    "normalization": (normalization, NUMBERS),
    "discretization": (lambda: layers.Discretization([-1.0, 0.0, 1.0]), NUMBERS),
    "text": (vectorizer, np.array(TEXTS)),
    "strings": (lambda: layers.StringLookup(vocabulary=TEXTS[:3]), np.array(TEXTS)),
    "hashing": (lambda: layers.Hashing(7), np.array(TEXTS)),
}
RANDOM = {"flip", "rotation", "contrast", "augment", "pipeline"}
cases = pytest.mark.parametrize("name", CASES)


def expected(name):
    """What the layer gives for the whole batch, where that does not depend on chance."""
    make, data = CASES[name]
    return ops.convert_to_numpy(make()(data))


def compare(name, found):
    found, wanted = np.asarray(found), expected(name)
    assert found.shape == wanted.shape and found.dtype.kind == wanted.dtype.kind
    if name not in RANDOM:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    elif name != "pipeline":
        assert (found != CASES[name][1]).any()


@cases
def test_a_list(name):
    make, data = CASES[name]
    layer = make()
    compare(name, np.stack([ops.convert_to_numpy(layer(row)) for row in list(data)]))
    compare(name, np.stack(list(map(layer.on_host, data))))


@cases
def test_numpy_stays_on_the_host(name):
    make, data = CASES[name]
    found = make().on_host(data)
    assert type(found) is np.ndarray
    compare(name, found)


class Rows:
    """A data set of torch's kind (and grain's): it gives one row."""

    def __init__(self, layer, data):
        self.layer, self.data = layer, data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return np.asarray(self.layer.on_host(self.data[index]))


class InWorkers(Rows):
    def __getitem__(self, index):
        return self.layer(self.data[index])


@cases
def test_torch_data_loader(name):
    torch_data = pytest.importorskip("torch.utils.data")
    make, data = CASES[name]
    found = list(torch_data.DataLoader(Rows(make(), data), batch_size=4))
    compare(name, np.concatenate([np.asarray(batch) for batch in found]))


@pytest.mark.parametrize("name", ["flip", "text", "normalization", "pipeline"])
def test_torch_data_loader_with_workers(name):
    torch_data = pytest.importorskip("torch.utils.data")
    make, data = CASES[name]
    loader = torch_data.DataLoader(InWorkers(make(), data), batch_size=3, num_workers=2)
    for _ in range(2):
        compare(name, np.concatenate([np.asarray(batch) for batch in loader]))


@cases
@pytest.mark.parametrize("batched", [True, False])
def test_tf_data(name, batched):
    tf = pytest.importorskip("tensorflow")
    make, data = CASES[name]
    layer = make()
    dataset = tf.data.Dataset.from_tensor_slices(data)
    dataset = dataset.batch(4).map(layer) if batched else dataset.map(layer).batch(4)
    shape = expected(name).shape[1:]
    assert tuple(dataset.element_spec.shape)[1:] == shape
    compare(name, np.concatenate([batch.numpy() for batch in dataset]))
    if name in RANDOM - {"pipeline"}:
        twice = [np.concatenate([batch.numpy() for batch in dataset]) for _ in range(2)]
        assert (twice[0] != twice[1]).any()  # drawn anew, not once for the graph


@cases
def test_grain(name):
    grain = pytest.importorskip("grain")
    make, data = CASES[name]
    dataset = grain.MapDataset.source(list(data)).map(make()).batch(6)
    compare(name, dataset[0])


@pytest.mark.parametrize("name", ["flip", "contrast", "normalization"])
def test_in_a_model_on_the_device(name):
    make, data = CASES[name]
    layer, data = make(), data.astype("float32")
    inputs = khub.Input(data.shape[1:])
    model = khub.Model(inputs, layer(inputs))
    if name == "normalization":
        compare(name, model.predict(data, verbose=0))
    else:
        np.testing.assert_array_equal(model.predict(data, verbose=0), data)
        compare(name, ops.convert_to_numpy(khub.jit(lambda x: model(x, training=True))(data)))
