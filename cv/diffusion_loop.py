"""The loop that draws: one compiled call for all steps, or one a step where somebody watches."""

import numpy as np

import khub
from khub import ops, tree
from khub.backend import active
from khub.layers.layer import CallContext

from .schedulers import step


def _on_device(x):
    return ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x


class Loop:
    """The compiled functions of a UNet and its ControlNets.

    given: a dict of what no step changes:
    inputs: the UNet's beside latents and times, of twice the images where `guided`
    guided, scale, rescale: whether a step compares with the negative prompt, how much that counts,
    and how much of its contrast is taken back   control: [(image, scale), ...], one a ControlNet
    extra: channels that the UNet takes beside the latents
    mask, known, noise: latents are drawn where the mask is 1, elsewhere they are `known` ones
    """

    def __init__(self, unet, controls=()):
        self.unet, self.controls = unet, controls
        self.one, self.all = khub.jit(self._step), khub.jit(self._steps)

    def run(self, x, plan, noise, given, watch=None):
        """Return the latents after all steps, float32.

        x: (images, height, width, channels)   noise: (steps, *x.shape), None where no step needs it
        watch: called with the number of each step that is done, and the latents; None: by nobody
        """
        rows = plan.rows if noise is None else {**plan.rows, "drawn": noise}
        x, rows, given = tree.map_structure(_on_device, (x, rows, given))
        state = {"x": x, "history": [ops.zeros_like(x)] * plan.depth}
        with active.inference(), CallContext(training=False):
            if watch is None:
                return self.all(state, rows, given, plan.rule)["x"]
            for number in range(len(plan)):
                row = {name: values[number] for name, values in rows.items()}
                state = self.one(state, row, given, plan.rule)
                watch(number, state["x"])
        return state["x"]

    def _steps(self, state, rows, given, rule):
        return ops.scan(lambda s, row: (self._step(s, row, given, rule), None), state, rows)[0]

    def _step(self, state, row, given, rule):
        output = self._predict(state["x"], row, given)
        x, history = step(row, state["x"], output, state["history"], **rule)
        if (mask := given.get("mask")) is not None:
            known = row["next_signal"] * given["known"] + row["next_std"] * given["noise"]
            x = mask * x + (1 - mask) * known
        return {"x": x, "history": history}

    def _predict(self, x, row, given):
        """What the UNet says of the latents, towards the prompt and away from the negative one.

        Ho and Salimans 2022, arXiv:2207.12598; rescaled: Lin et al. 2023, arXiv:2305.08891, 3.4
        """
        x = x * row["scale"]
        parts = [ops.concatenate([x, x]) if given["guided"] else x, *given.get("extra", ())]
        latents = ops.concatenate(parts, -1) if len(parts) > 1 else parts[0]
        inputs = {**given["inputs"], "latents": latents, "timesteps": row["timestep"]}
        pairs = zip(self.controls, given.get("control", ()), strict=True)
        found = [[s * r for r in net({**inputs, "image": i})] for net, (i, s) in pairs]
        if found:
            inputs["residuals"] = [sum(parts) for parts in zip(*found, strict=True)]
        output = ops.cast(self.unet(inputs), "float32")
        if not given["guided"]:
            return output
        negative, positive = ops.split(output, 2)
        output = negative + given["scale"] * (positive - negative)
        if (rescale := given["rescale"]) is None:
            return output
        ratio = ops.std(positive, (1, 2, 3), True) / ops.std(output, (1, 2, 3), True)
        return output * (rescale * ratio + (1 - rescale))
