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

from ..presets.tensors import parse_json, write_json

FILE = "scheduler_config.json"
TRAINING = {  # what all have in scheduler_config.json, with the defaults of diffusers
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
ZERO = {"rescale_betas_zero_snr": False}
MULTISTEP = {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
}
LCM = {"original_inference_steps": 50, "timestep_scaling": 10.0, "set_alpha_to_one": True}
LCM |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING, LINSPACE = {"timestep_spacing": "leading"}, {"timestep_spacing": "linspace"}
KARRAS = {"use_karras_sigmas": False, "final_sigmas_type": "zero"}
# diffusers' class -> what it has in scheduler_config.json beside TRAINING, with its defaults
CLASSES = {
    "DDIMScheduler": {**CLIPPED, "set_alpha_to_one": True, **LEADING, **ZERO},
    "PNDMScheduler": {"skip_prk_steps": False, "set_alpha_to_one": False, **LEADING},
    "EulerDiscreteScheduler": {**LINSPACE, **KARRAS, **ZERO},
    "EulerAncestralDiscreteScheduler": {**LINSPACE, **ZERO},
    "DPMSolverMultistepScheduler": {**MULTISTEP, **LINSPACE, **KARRAS, **ZERO},
    "LCMScheduler": {**LCM, **CLIPPED, "clip_sample": False, **LEADING, **ZERO},
}
NAMES = {  # khub's name -> diffusers' class, and what the name says of its settings
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": ("LCMScheduler", {}),
}
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "heun"),
    "solver_order": (1, 2, 3),
    "final_sigmas_type": ("zero", "sigma_min"),
}
# settings of diffusers that would change the result and are not read: refused unless like this
REFUSED = {
    **dict.fromkeys(("thresholding", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"), False),
    **dict.fromkeys(("sigma_min", "sigma_max", "variance_type"), None),
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
ADAMS_BASHFORTH = [  # weights of this and earlier outputs, step by step; that of the second step,
    (1,),  # which averages and does the first again, does not count afterwards
    (1 / 2, 1 / 2),
    (3 / 2, 0, -1 / 2),
    (23 / 12, -16 / 12, 0, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, 0, -9 / 24),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
]
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Plan:
    """The numbers of all steps of one drawing.

    rows: name -> float32 (steps, ...), what `step` and the loop around it use: "timestep" and
    "scale" of the model's input, "signal" and "std" of noised latents at the step, "next_signal"
    and "next_std" after it, the weights of the sum
    start: what noise of variance 1 is multiplied with before the first step
    depth: how many earlier outputs are kept   keeps_clean: they are x0, else the model's
    """

    rows: dict
    start: float
    depth: int
    keeps_clean: bool
    clip: float | None

    def __len__(self):
        return len(self.rows["timestep"])

    @property
    def needs_noise(self):
        """Whether a step adds noise."""
        return bool(self.rows["noise"].any())

    @property
    def rule(self):
        """What `step` takes beside numbers of each step."""
        return {"keeps_clean": self.keeps_clean, "clip": self.clip}


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
            raise ValueError(
                f"There is no scheduler {kind!r}; expected one of {', '.join([*NAMES, *CLASSES])}."
            )
        self.kind, self.given = name, {**config, **more}
        defaults = {**TRAINING, **CLASSES[name]}
        self.config = {key: self.given.get(key, value) for key, value in defaults.items()}
        self._check()
        self.alpha, self.sigma = self._training()

    def _check(self):
        config, self.steps = self.config, self.config["num_train_timesteps"]
        wrong = [
            f"{key} {config[key]!r} (expected one of {', '.join(map(repr, known))})"
            for key, known in CHOICES.items()
            if key in config and config[key] not in known
        ]
        wrong += [
            f"{key} {self.given[key]!r} (expected {value!r})"
            for key, value in REFUSED.items()
            if self.given.get(key, value) != value
        ]
        if not isinstance(self.steps, int) or not 0 < self.steps <= MOST_STEPS:
            wrong.append(f"num_train_timesteps {self.steps!r} (expected 1 to {MOST_STEPS})")
        if not config.get("skip_prk_steps", True):
            wrong.append("skip_prk_steps False (expected True)")
        zero = config.get("rescale_betas_zero_snr")
        if zero and config["prediction_type"] == "epsilon" and self.kind == "DDIMScheduler":
            wrong.append("rescale_betas_zero_snr with prediction_type 'epsilon'")
        if wrong:
            raise ValueError(f"{self.kind} does not read {', '.join(wrong)}.")

    def __repr__(self):
        return f"Scheduler({self.kind!r}, prediction_type={self.config['prediction_type']!r})"

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

    @property
    def reference_class(self):
        """diffusers' class."""
        return self.kind

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
        alpha = self.alpha[timesteps].astype("float32").reshape(shape)
        sigma = self.sigma[timesteps].astype("float32").reshape(shape)
        targets = {
            "epsilon": lambda: noise,
            "sample": lambda: latents,
            "v_prediction": lambda: alpha * noise - sigma * latents,
        }
        target = targets[self.config["prediction_type"]]()
        return alpha * latents + sigma * noise, target

    # --- steps -----------------------------------------------------------------------------------
    def plan(self, num_steps, strength=1.0, eta=0.0):
        """Return the `Plan` of a drawing.

        strength: the part of the steps that is done, the last ones   eta: DDIM's noise, 0 to 1
        Raises ValueError when no step remains, or there are more than the training had.
        """
        whole = isinstance(num_steps, (int, np.integer)) and not isinstance(num_steps, bool)
        if not whole or not 0 < num_steps <= self.steps:
            raise ValueError(f"num_steps must be 1 to {self.steps}, got {num_steps!r}.")
        if not 0 <= strength <= 1 or int(num_steps * strength) < 1:
            raise ValueError(
                f"strength must lie between 0 and 1 and leave a step of {num_steps}, got "
                f"{strength!r}."
            )
        start = num_steps - int(num_steps * strength)
        rows = PLANS[self.kind](self, num_steps, start, eta)
        rows = {name: np.asarray(row, "float64") for name, row in rows.items()}
        count, zero = len(rows["timestep"]), np.zeros(len(rows["timestep"]))
        self._fold(rows)
        past = rows.setdefault("past", np.zeros((count, 1)))
        rows.setdefault("noise", zero)
        depth = int(past.any(0).nonzero()[0].max(initial=-1)) + 1
        noisy = rows.pop("starts_noisy", zero)[0]
        level = rows["std"][0] if noisy else np.hypot(rows["signal"][0], rows["std"][0])
        rows["next_signal"] = np.append(rows["signal"][1:], 1.0)
        rows["next_std"] = np.append(rows["std"][1:], 0.0)
        clip = self.config["clip_sample_range"] if self.config.get("clip_sample") else None
        rows = {name: row.astype("float32") for name, row in rows.items()}
        return Plan(rows, float(level), depth, self.kind.startswith("DPM"), clip)

    def _fold(self, rows):
        """Say x0 and the noise by x and the model's output, and the noise no more."""
        alpha, sigma = rows.pop("alpha"), rows.pop("sigma")
        scale = rows.setdefault("scale", np.ones_like(alpha))
        clean, noise = self._said(alpha, sigma, scale)
        weight = rows.pop("eps", np.zeros_like(alpha))
        rows |= {"clean_x": clean[0], "clean_output": clean[1]}
        rows["x"] = rows.get("x", 0) + weight * noise[0]
        rows["output"] = rows.get("output", 0) + weight * noise[1]
        rows.setdefault("clean", np.zeros_like(alpha))
        rows |= {"signal": alpha / scale, "std": sigma / scale}

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
    past = np.zeros((len(timesteps), 4))
    for number, weights in enumerate(ADAMS_BASHFORTH):
        rows = slice(number, None if number == 5 else number + 1)
        past[rows, : len(weights) - 1] = output[rows, None] * weights[1:]
    if len(timesteps) > 1:
        past[1, 0] -= x[1] * output[0] / x[0]
        x[1] /= x[0]
    first = [weights[0] for weights in ADAMS_BASHFORTH] + [55 / 24] * len(timesteps)  # the last
    alpha, sigma = scheduler._levels(timesteps)
    rows = {"timestep": timesteps, "alpha": alpha, "sigma": sigma, "past": past}
    return rows | {"x": x, "output": output * first[: len(timesteps)]}


def _euler(scheduler, count, start, eta):
    timesteps, levels = scheduler._noise_levels(scheduler._timesteps(count, whole=False), False)
    timesteps, levels = timesteps[start:], levels[start:]
    level, new = levels[:-1], levels[1:]
    noise = np.zeros_like(new)
    if "Ancestral" in scheduler.kind:
        noise = new * np.sqrt(np.maximum(1 - (new / level) ** 2, 0))
        new = new**2 / level  # sqrt(new^2 - noise^2)
    scale = 1 / np.sqrt(level**2 + 1)
    spread = scheduler.config["timestep_spacing"] != "leading"
    rows = {"timestep": timesteps, "alpha": scale, "sigma": level * scale, "scale": scale}
    rows |= {"starts_noisy": np.full(len(level), spread), "noise": noise}
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
        gone = -np.expm1(-h * (2 if random else 1))
        keep = (levels[i + 1] * alpha) / (levels[i] * alphas[i])
        rows["x"][row] = keep * (np.exp(-h) if random else 1)
        rows["noise"][row] = random * levels[i + 1] * alpha * np.sqrt(gone)
        weights = np.array([alpha * gone, 0.0, 0.0])  # of this x0 and of two before
        if order > 1:
            # weights of the first and second difference quotient, in units of h
            slope = alpha * gone / 2 if order == 2 and not heun else alpha * _phi(gone, h, random)
            ratio = (times[i] - times[i - 1]) / h
            quotient = np.array([1, -1, 0]) / ratio
            if order == 3:
                older = np.array([0, 1, -1]) * h / (times[i - 1] - times[i - 2])
                total = (times[i] - times[i - 2]) / h
                bend = (quotient - older) / total
                quotient = quotient + ratio * bend
                weights += alpha * _bend(gone, h, random) * bend
            weights += slope * quotient
        rows["clean"][row], rows["past"][row] = weights[0], weights[1:]
    level, alpha = levels[start:-1], alphas[start:-1]
    return rows | {"timestep": timesteps[start:], "alpha": alpha, "sigma": level * alpha}


def _phi(gone, h, random):
    """The integral of the first difference's weight over a step."""
    return 1 - gone / (2 * h if random else h)


def _bend(gone, h, random):
    """The same of the second difference's."""
    h = 2 * h if random else h
    return 1 / 2 - (h - gone) / h**2


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


PLANS = {
    "DDIMScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler,
    "DPMSolverMultistepScheduler": _multistep,
    "LCMScheduler": _lcm,
}
