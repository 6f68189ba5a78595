"""keras.ops as a numerical library: clusters, eigenvalues, recurrences, images, random numbers."""

import keras
import numpy as np
from keras import ops

random = np.random.RandomState(0)


def k_means(points, centers, rounds):
    for _ in range(rounds):
        distances = ops.sum(ops.square(points[:, None] - centers[None]), axis=-1)
        nearest = ops.one_hot(ops.argmin(distances, axis=1), centers.shape[0])
        sums = ops.matmul(ops.transpose(nearest), points)
        centers = sums / ops.maximum(ops.sum(nearest, axis=0)[:, None], 1)
    return centers


truth = np.array([[0, 0], [5, 0], [0, 5]], "float32")
points = np.concatenate([c + 0.3 * random.randn(50, 2) for c in truth]).astype("float32")
found = k_means(ops.convert_to_tensor(points), ops.convert_to_tensor(points[::50]), 10)
np.testing.assert_allclose(ops.convert_to_numpy(found), truth, atol=0.2)

matrix = random.randn(5, 5).astype("float32")
matrix = matrix @ matrix.T
vector = ops.ones((5, 1))
count, vector = ops.while_loop(
    lambda i, v: i < 400,
    lambda i, v: (i + 1, ops.normalize(ops.matmul(matrix, v), axis=0)),
    (ops.convert_to_tensor(0), vector),
)
value = ops.sum(vector * ops.matmul(matrix, vector))
np.testing.assert_allclose(float(value), np.linalg.eigvalsh(matrix)[-1], rtol=1e-3)
assert int(count) == 400


def step(carry, x):
    carry = 0.5 * carry + x
    return carry, carry


last, every = ops.scan(step, ops.zeros(()), ops.ones(6))
np.testing.assert_allclose(ops.convert_to_numpy(every), 2 - 0.5 ** np.arange(6.0), rtol=1e-6)
assert float(last) == float(every[-1])
left, right = ops.convert_to_tensor([3, 1, 2]), ops.convert_to_tensor([1.5, 2.5, 0.5])
assert keras.backend.standardize_dtype(ops.multiply(left, right).dtype) == "float32"
values, indices = ops.top_k(right, 2)
assert ops.convert_to_numpy(indices).tolist() == [1, 0]
np.testing.assert_allclose(ops.convert_to_numpy(ops.logsumexp(right)), 2.90760, rtol=1e-4)
product = ops.einsum("bij,bjk->bik", ops.ones((2, 3, 4)), ops.ones((2, 4, 5)))
assert product.shape == (2, 3, 5) and float(product[0, 0, 0]) == 4
picture = ops.image.resize(ops.reshape(ops.arange(16.0), (1, 4, 4, 1)), (2, 2))
np.testing.assert_allclose(ops.convert_to_numpy(picture)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
total = ops.segment_sum(ops.arange(6.0), ops.convert_to_tensor([0, 0, 1, 1, 1, 2]), 3)
assert ops.convert_to_numpy(total).tolist() == [1, 9, 5]
seed = keras.random.SeedGenerator(4)
one, two = keras.random.normal((2000,), seed=seed), keras.random.normal((2000,), seed=seed)
assert abs(float(ops.mean(one))) < 0.1 and abs(float(ops.std(two)) - 1) < 0.1
assert not np.allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(two))
same = [keras.random.uniform((3,), seed=7) for _ in range(2)]
np.testing.assert_array_equal(*map(ops.convert_to_numpy, same))
