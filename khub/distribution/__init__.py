"""Training over several devices and processes, with Keras' names: meshes, layouts, distributions.

`set_distribution(DataParallel())` before the model is made; the rest of the program stays as it is.
"""

from khub.distribution.distribution import (
    DataParallel,
    Distribution,
    ModelParallel,
    distribute_batch,
    distribute_tensor,
    distribution,
    get_device_count,
    initialize,
    list_devices,
    set_distribution,
)
from khub.distribution.layouts import DeviceMesh, LayoutMap, TensorLayout
from khub.distribution.ray import ray_predict
