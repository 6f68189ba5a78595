"""Samplers of diffusion models: a table of numbers for each, made on the host, and one step.

The model was trained on x = alpha x0 + sigma noise, alpha^2 + sigma^2 = 1, and tells x0 from x.
Every sampler here then steps to less noise by a weighted sum of x, of what the model said now and
before, and of fresh noise. Only the weights differ: a loop over a table of them is all there is.

DDIM: Song et al., arXiv:2010.02502. PNDM: Liu et al., arXiv:2202.09778. Euler, Euler ancestral and
the noise levels of Karras et al.: arXiv:2206.00364. DPM-Solver++: Lu et al., arXiv:2211.01095.
LCM: Luo et al., arXiv:2310.04378.
"""

from dataclasses import dataclass

import numpy as np

from khub import ops
from khub.choices import choose

from ..presets.tensors import parse_json, write_json
from .backbone import check

FILE = "scheduler_config.json"
# what all have in scheduler_config.json, with the defaults of diffusers
TRAINING = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, trained_betas=None)
TRAINING |= dict(beta_schedule="linear", prediction_type="epsilon", steps_offset=0)
LEADING, LINSPACE = {"timestep_spacing": "leading"}, {"timestep_spacing": "linspace"}
ZERO, CLIPPED = {"rescale_betas_zero_snr": False}, dict(clip_sample=True, clip_sample_range=1.0)
KARRAS = dict(use_karras_sigmas=False, final_sigmas_type="zero", **LINSPACE, **ZERO)
MULTISTEP = dict(solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint")
MULTISTEP |= dict(lower_order_final=True, euler_at_final=False)
LCM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LCM |= dict(original_inference_steps=50, timestep_scaling=10.0, set_alpha_to_one=True)
CLASSES = {  # diffusers' class -> what it has beside TRAINING, with its defaults
    "DDIMScheduler": {**CLIPPED, "set_alpha_to_one": True, **LEADING, **ZERO},
    "PNDMScheduler": {"skip_prk_steps": False, "set_alpha_to_one": False, **LEADING},
    "EulerDiscreteScheduler": KARRAS,
    "EulerAncestralDiscreteScheduler": {**LINSPACE, **ZERO},
    "DPMSolverMultistepScheduler": {**MULTISTEP, **KARRAS},
    "LCMScheduler": {**LCM, **CLIPPED, "clip_sample": False, **LEADING, **ZERO},
}
DPM = "DPMSolverMultistepScheduler"
NAMES = {  # khub's name -> diffusers' class, and what the name says of its settings
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": (DPM, {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": (DPM, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++_sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": ("LCMScheduler", {}),
}
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    **{"solver_type": ("midpoint", "heun"), "solver_order": (1, 2, 3)},
    "final_sigmas_type": ("zero", "sigma_min"),
}
# settings of diffusers that would change the result and are not read
OFF = "thresholding use_exponential_sigmas use_beta_sigmas use_lu_lambdas use_flow_sigmas"
REFUSED = {
    **dict.fromkeys([*OFF.split(), "use_dynamic_shifting"], False),
    **dict.fromkeys(("sigma_min", "sigma_max", "variance_type"), None),
    **dict(interpolation_type="linear", timestep_type="discrete", skip_prk_steps=True),
}
# PLMS: 24 times the weights of this and earlier outputs, step by step; that of the second step,
# which averages and does the first again, does not count afterwards
MULTIPLES = [24, 0, 0, 0, 0], [12, 12, 0, 0, 0], [36, 0, -12, 0, 0], [46, -32, 0, 10, 0]
MULTIPLES = np.array([*MULTIPLES, [55, -59, 37, 0, -9], [55, -59, 37, -9, 0]]) / 24
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Plan:
    """The numbers of all steps of one drawing.

    rows: name -> float32 (steps, ...), what `step` and the loop around it use: "timestep" and
    "scale" of the model's input, "signal" and "std" of noised latents at the step, "next_signal"
    and "next_std" after it, the weights of the sum
    start: what noise of variance 1 is multiplied with before the first step
    depth: how many earlier outputs are kept   rule: keeps_clean, whether they are x0, else the
    model's; clip: what x0 is clipped to, or None
    """

    rows: dict
    start: float
    depth: int
    rule: dict

    def __len__(self):
        return len(self.rows["timestep"])

    @property
    def needs_noise(self):
        """Whether a step adds noise."""
        return bool(self.rows["noise"].any())


def step(row, x, output, history, keeps_clean, clip):
    """Return the latents after a step, and what is kept of it and of earlier ones.

    row: name -> number, of a plan's `rows`, and where noise is needed "drawn", of x's shape
    x, output, history: (batch, height, width, channels), what the model said of x, a list of them
    """
    clean = row["clean_x"] * x + row["clean_output"] * output
    if clip is not None:
        clean = ops.clip(clean, -clip, clip)
    x = row["x"] * x + row["output"] * output + row["clean"] * clean
    for number, past in enumerate(history):
        x = x + row["past"][number] * past
    if "drawn" in row:
        x = x + row["noise"] * row["drawn"]
    return x, [clean if keeps_clean else output, *history][: len(history)]


class Scheduler:
    """How a diffusion model's noise levels were in training, and how they are stepped through.

    kind: one of `NAMES` or a class of diffusers; config: as scheduler_config.json has it
    Raises ValueError for a setting that is not known.
    """

    reference_library = "diffusers"

    def __init__(self, kind="ddim", **config):
        name, more = NAMES.get(kind, (kind, {}))
        if name not in CLASSES:
            known = ", ".join([*NAMES, *CLASSES])
            raise ValueError(f"scheduler must be one of {known}, got {kind!r}.")
        self.kind, self.reference_class, self.given = name, name, {**config, **more}
        defaults = {**TRAINING, **CLASSES[name]}
        self.config = {key: self.given.get(key, value) for key, value in defaults.items()}
        self._check()
        self.alpha, self.sigma = self._training()

    def _check(self):
        config, self.steps = self.config, self.config["num_train_timesteps"]
        if not isinstance(self.steps, int) or not 0 < self.steps <= MOST_STEPS:
            raise ValueError(f"num_train_timesteps must be 1 to {MOST_STEPS}, got {self.steps!r}.")
        for key in CHOICES.keys() & config.keys():
            choose(key, config[key], CHOICES[key])
        check({**self.given, **config}, REFUSED)
        zero = config.get("rescale_betas_zero_snr") and self.kind == "DDIMScheduler"
        if zero and config["prediction_type"] == "epsilon":  # x0 would be divided by 0
            raise ValueError("rescale_betas_zero_snr needs a prediction_type other than epsilon.")

    @classmethod
    def load(cls, folder):
        """Read a folder's scheduler_config.json."""
        config = parse_json((folder / FILE).read_bytes(), str(folder / FILE))
        try:
            return cls(config.get("_class_name"), **config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / FILE}: {error}") from error

    def save(self, folder):
        """Write a scheduler_config.json."""
        kept = {key: value for key, value in self.given.items() if not key.startswith("_")}
        write_json(folder / FILE, {"_class_name": self.kind, **kept, **self.config})

    def like(self, kind):
        """Return a scheduler of another kind for the same model; a `Scheduler` as it is."""
        return kind if isinstance(kind, Scheduler) else Scheduler(kind, **self.given)

    # --- training --------------------------------------------------------------------------------
    def _training(self):
        """alpha and sigma of each timestep of the training."""
        config, count = self.config, self.steps
        first, last, name = config["beta_start"], config["beta_end"], config["beta_schedule"]
        if config["trained_betas"] is not None:
            betas = np.asarray(config["trained_betas"], "float64")
        elif name == "squaredcos_cap_v2":  # Nichol and Dhariwal, arXiv:2102.09672
            left = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
        else:
            power = 2 if name == "scaled_linear" else 1
            betas = np.linspace(first ** (1 / power), last ** (1 / power), count) ** power
        if betas.shape != (count,):
            raise ValueError(f"trained_betas has {betas.size} numbers for {count} timesteps.")
        kept = 1 - betas.astype("float32")  # as the models had it in training, rounded
        alpha = np.sqrt(np.cumprod(kept, dtype="float64"))
        if config.get("rescale_betas_zero_snr"):  # Lin et al., arXiv:2305.08891, algorithm 1
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
            if self.kind not in ("DDIMScheduler", "LCMScheduler"):  # these divide by it
                alpha[-1] = 2**-12
        return alpha, np.sqrt(1 - alpha**2)

    def noised(self, latents, noise, timesteps):
        """Return noised latents and what the model should say of them, NumPy arrays.

        latents, noise: (batch, height, width, channels)   timesteps: int (batch,)
        """
        shape = (-1, *[1] * (latents.ndim - 1))
        levels = self.alpha[timesteps], self.sigma[timesteps]
        alpha, sigma = (x.astype("float32").reshape(shape) for x in levels)
        targets = {"epsilon": noise, "sample": latents}
        targets["v_prediction"] = alpha * noise - sigma * latents
        return alpha * latents + sigma * noise, targets[self.config["prediction_type"]]

    # --- steps -----------------------------------------------------------------------------------
    def plan(self, num_steps, strength=1.0, eta=0.0):
        """Return the `Plan` of a drawing.

        strength: the part of the steps that is done, the last ones   eta: DDIM's noise, 0 to 1
        Raises ValueError when no step remains, or there are more than the training had.
        """
        if type(num_steps) is not int or not 0 < num_steps <= self.steps:
            raise ValueError(f"num_steps must be 1 to {self.steps}, got {num_steps!r}.")
        if not 0 <= strength <= 1 or int(num_steps * strength) < 1:
            where = f"between 0 and 1 and leave a step of {num_steps}"
            raise ValueError(f"strength must lie {where}, got {strength!r}.")
        start = num_steps - int(num_steps * strength)
        rows = PLANS[self.kind](self, num_steps, start, eta)
        alpha, sigma, spread = rows.pop("alpha"), rows.pop("sigma"), rows.pop("spread", False)
        zero = np.zeros_like(alpha)
        rows = dict.fromkeys(("x", "output", "clean", "eps", "noise"), zero) | rows
        rows = {"scale": zero + 1, "past": zero[:, None], **rows}
        clean, noise = self._said(alpha, sigma, rows["scale"])
        weight = rows.pop("eps")
        rows |= {"clean_x": clean[0], "clean_output": clean[1]}
        rows["x"], rows["output"] = (
            rows["x"] + weight * noise[0],
            rows["output"] + weight * noise[1],
        )
        signal, std = rows["signal"], rows["std"] = alpha / rows["scale"], sigma / rows["scale"]
        rows |= {"next_signal": np.append(signal[1:], 1.0), "next_std": np.append(std[1:], 0.0)}
        depth = int(rows["past"].any(0).nonzero()[0].max(initial=-1)) + 1
        clip = self.config["clip_sample_range"] if self.config.get("clip_sample") else None
        rows = {name: np.asarray(row, "float32") for name, row in rows.items()}
        first = float(std[0] if spread else np.hypot(signal[0], std[0]))
        return Plan(rows, first, depth, {"keeps_clean": self.kind == DPM, "clip": clip})

    def _said(self, alpha, sigma, scale=1.0):
        """x0 and the noise as weights of (x, the model's output)."""
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        kind = self.config["prediction_type"]
        if kind == "epsilon":
            return (scale / alpha, -sigma / alpha), (zero, one)
        if kind == "sample":
            return (zero, one), (scale / sigma, -alpha / sigma)
        return (alpha * scale, -sigma), (sigma * scale, alpha)

    def _timesteps(self, count, more=0, whole=True):
        """Timesteps of the training, the noisiest first; more: steps beyond, which fall away."""
        spacing, all_steps = self.config["timestep_spacing"], self.steps
        if spacing == "trailing":
            return np.round(np.arange(all_steps, 0, -all_steps / count))[:count] - 1
        if spacing == "linspace":
            steps = np.linspace(0, all_steps - 1, count + more)[::-1]
            return (np.round(steps) if whole else steps)[:count]
        steps = np.arange(count + more) * (all_steps // (count + more))
        steps = steps[::-1][:count] + self.config["steps_offset"]
        if steps[0] >= all_steps:
            raise ValueError(f"{count} steps with steps_offset go beyond {all_steps} timesteps.")
        return steps

    def _levels(self, timesteps):
        """alpha and sigma of whole timesteps; of those before the first, of what is clean."""
        indices = np.maximum(timesteps, 0).astype(int)
        final = 1.0 if self.config["set_alpha_to_one"] else self.alpha[0]
        alpha = np.where(timesteps < 0, final, self.alpha[indices])
        return alpha, np.sqrt(1 - alpha**2)

    def _noise_levels(self, timesteps, of_all):
        """Timesteps and their sigma / alpha, one more: that at the end.

        of_all: Karras' levels lie between those of the whole training, at whole timesteps
        """
        trained, numbers = self.sigma / self.alpha, np.arange(self.steps)
        levels = np.interp(timesteps, numbers, trained)
        if self.config.get("use_karras_sigmas"):  # arXiv:2206.00364, equation 5, rho = 7
            ends = trained[[-1, 0]] if of_all else levels[[0, -1]]
            levels = np.linspace(*ends ** (1 / 7), len(levels)) ** 7
            timesteps = np.interp(np.log(levels), np.log(trained), numbers)
            timesteps = np.round(timesteps) if of_all else timesteps
        last = trained[0] if self.config.get("final_sigmas_type") == "sigma_min" else 0.0
        return timesteps, np.append(levels, last)


def _ddim(scheduler, count, start, eta):
    timesteps = scheduler._timesteps(count)[start:]
    alpha, sigma = scheduler._levels(timesteps)
    new_alpha, new_sigma = scheduler._levels(timesteps - scheduler.steps // count)
    noise = eta * new_sigma / sigma * np.sqrt(np.maximum(1 - (alpha / new_alpha) ** 2, 0))
    rows = {"timestep": timesteps, "alpha": alpha, "sigma": sigma, "noise": noise}
    return rows | {"clean": new_alpha, "eps": np.sqrt(np.maximum(new_sigma**2 - noise**2, 0))}


def _pndm(scheduler, count, start, eta):
    """DDIM's step, of a weighted mean of this and earlier outputs.

    The first step is done twice: the second time with the mean of both outputs, from where the
    first began, which is (x - output[0] * its output) / x[0].
    """
    between = scheduler.steps // count
    timesteps = scheduler._timesteps(count)
    timesteps = np.insert(timesteps, 1, timesteps[1:2])[start:]
    begins = timesteps.copy()
    begins[1:2] += between
    ends = begins - between
    levels = scheduler._levels(begins)
    new_alpha, new_sigma = scheduler._levels(ends)
    (clean_x, clean_output), (noise_x, noise_output) = scheduler._said(*levels)
    x = new_alpha * clean_x + new_sigma * noise_x
    output = new_alpha * clean_output + new_sigma * noise_output
    weights = MULTIPLES[np.minimum(np.arange(len(timesteps)), 5)]
    past = output[:, None] * weights[:, 1:]
    past[1:2, 0] -= x[1:2] * output[0] / x[0]
    x[1:2] /= x[0]
    alpha, sigma = scheduler._levels(timesteps)
    rows = {"timestep": timesteps, "alpha": alpha, "sigma": sigma, "past": past}
    return rows | {"x": x, "output": output * weights[:, 0]}


def _euler(scheduler, count, start, eta):
    timesteps, levels = scheduler._noise_levels(scheduler._timesteps(count, whole=False), False)
    timesteps, levels = timesteps[start:], levels[start:]
    level, new = levels[:-1], levels[1:]
    noise = np.zeros_like(new)
    if "Ancestral" in scheduler.kind:
        noise = new * np.sqrt(np.maximum(1 - (new / level) ** 2, 0))
        new = new**2 / level  # sqrt(new^2 - noise^2)
    scale = 1 / np.sqrt(level**2 + 1)
    rows = {"timestep": timesteps, "alpha": scale, "sigma": level * scale, "scale": scale}
    rows |= {"spread": scheduler.config["timestep_spacing"] != "leading", "noise": noise}
    return rows | {"x": new / level, "clean": 1 - new / level}


def _multistep(scheduler, count, start, eta):
    """DPM-Solver++: the differences of earlier x0 stand for derivatives. arXiv:2211.01095, 4."""
    config = scheduler.config
    timesteps, levels = scheduler._noise_levels(scheduler._timesteps(count, more=1), True)
    alphas = 1 / np.sqrt(levels**2 + 1)
    with np.errstate(divide="ignore"):
        times = -np.log(levels)  # half the logarithm of the ratio of signal to noise
    random, heun = "sde" in config["algorithm_type"], config["solver_type"] == "heun"
    few = config["lower_order_final"] and count < 15
    last_first = config["euler_at_final"] or few or config["final_sigmas_type"] == "zero"
    rows = {name: np.zeros(count - start) for name in ("x", "clean", "noise")}
    rows["past"] = np.zeros((count - start, 2))
    for row, i in enumerate(range(start, count)):
        left = count - i  # steps to do, this one too
        cap = 1 if left == 1 and last_first else 2 if left == 2 and few else 3
        order = min(config["solver_order"], row + 1, cap)
        h, alpha = times[i + 1] - times[i], alphas[i + 1]
        wide = 2 * h if random else h
        gone = -np.expm1(-wide)
        keep = (levels[i + 1] * alpha) / (levels[i] * alphas[i])
        rows["x"][row] = keep * (np.exp(-h) if random else 1)
        rows["noise"][row] = random * levels[i + 1] * alpha * np.sqrt(gone)
        weights = np.array([alpha * gone, 0.0, 0.0])  # of this x0 and of two before
        if order > 1:  # the first and second difference quotient, in units of h
            quotient = np.array([1, -1, 0]) * h / (times[i] - times[i - 1])
            if order == 3:
                older = np.array([0, 1, -1]) * h / (times[i - 1] - times[i - 2])
                bend = (quotient - older) * h / (times[i] - times[i - 2])
                quotient = quotient + bend * (times[i] - times[i - 1]) / h
                weights += alpha * (1 / 2 - (wide - gone) / wide**2) * bend
            midpoint = order == 2 and not heun
            weights += alpha * (gone / 2 if midpoint else 1 - gone / wide) * quotient
        rows["clean"][row], rows["past"][row] = weights[0], weights[1:]
    level, alpha = levels[start:-1], alphas[start:-1]
    return rows | {"timestep": timesteps[start:], "alpha": alpha, "sigma": level * alpha}


def _lcm(scheduler, count, start, eta):
    config, all_steps = scheduler.config, scheduler.config["original_inference_steps"]
    if count > all_steps:
        raise ValueError(f"LCM has at most {all_steps} steps, got {count}.")
    origin = np.arange(all_steps, 0, -1) * (scheduler.steps // all_steps) - 1
    indices = np.floor(np.linspace(0, all_steps, count, endpoint=False)).astype(int)
    timesteps = origin[indices][start:]
    alpha, sigma = scheduler._levels(timesteps)
    new_alpha, new_sigma = scheduler._levels(np.append(timesteps[1:], -1))
    new_alpha[-1], new_sigma[-1] = 1.0, 0.0
    time = (config["timestep_scaling"] * timesteps) ** 2
    skip, out = 0.25 / (time + 0.25), np.sqrt(time / (time + 0.25))
    rows = {"timestep": timesteps, "alpha": alpha, "sigma": sigma, "noise": new_sigma}
    return rows | {"x": new_alpha * skip, "clean": new_alpha * out}


PLANS = dict(zip(CLASSES, (_ddim, _pndm, _euler, _euler, _multistep, _lcm)))
