"""Schedulers against those of diffusers: trajectories of a fixed model from given latents."""

import json

import numpy as np
import pytest

from khub import ops
from khub.cv.schedulers import CLASSES, NAMES, Scheduler, step

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own

STABLE = {  # what the configurations of Stable Diffusion have
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
CHANGES = {  # name -> (what is changed, classes it is for; none: all)
    "stable": ({},),
    "v_prediction": ({"prediction_type": "v_prediction"},),
    "sample": ({"prediction_type": "sample"}, "DDIM", "DPM", "LCM"),
    "linspace": ({"timestep_spacing": "linspace"},),
    "trailing": ({"timestep_spacing": "trailing"},),
    "linear": ({"beta_schedule": "linear", "steps_offset": 0, "set_alpha_to_one": True},),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"},),
    "clipped": ({"clip_sample": True, "clip_sample_range": 0.7}, "DDIM", "LCM"),
    "zero": (
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        | {"timestep_spacing": "leading"},
        *("DDIM", "Euler", "DPM", "LCM"),
    ),
    "betas": ({"trained_betas": list(np.linspace(0.001, 0.02, 1000))},),
    "karras": ({"use_karras_sigmas": True}, "EulerD", "DPM"),
    "karras, v": (
        {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
        *("EulerD", "DPM"),
    ),
    "ends at the least": ({"final_sigmas_type": "sigma_min"}, "EulerD", "DPM"),
    "first order": ({"solver_order": 1}, "DPM"),
    "third order": ({"solver_order": 3}, "DPM"),
    "heun": ({"solver_order": 3, "solver_type": "heun", "lower_order_final": False}, "DPM"),
    "euler at the end": (
        {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        "DPM",
    ),
    "sde": ({"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, "DPM"),
    "sde, heun": ({"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "DPM"),
}
CASES = [
    (cls, name)
    for cls in CLASSES
    for name, (_, *only) in CHANGES.items()
    if not only or cls.startswith(tuple(only))
]
RUNS = [(10, 1.0), (20, 1.0), (10, 0.65), (1, 1.0)]
RANDOM = np.random.default_rng(0)
LATENTS = RANDOM.standard_normal((2, 3, 4, 3), "float32")
NOISE = RANDOM.standard_normal((22, *LATENTS.shape), "float32")


def model(x, timestep):
    """Some function that is not linear, of NumPy arrays."""
    x = np.asarray(x, "float32")
    return np.float32(0.9) * np.tanh(x) + np.float32(0.3) * x + np.float32(np.sin(timestep / 99))


def reference(cls, config, count, strength, monkeypatch):
    scheduler = getattr(diffusers, cls).from_config(config)
    scheduler.set_timesteps(count)
    start = count - int(count * strength)
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    latents = torch.tensor(LATENTS)
    if start:
        x = scheduler.add_noise(latents, torch.tensor(NOISE[-1]), timesteps[:1])
    else:
        x = latents * scheduler.init_noise_sigma
    for number, timestep in enumerate(timesteps):
        drawn = torch.tensor(NOISE[number])
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        monkeypatch.setattr(module, "randn_tensor", lambda *_, x=drawn, **__: x, raising=False)
        said = model(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(torch.tensor(said), timestep, x).prev_sample
    return x.numpy(), np.array(timesteps, "float32")


def ours(scheduler, count, strength):
    plan = scheduler.plan(count, strength)
    first = {name: row[0] for name, row in plan.rows.items()}
    x = LATENTS * plan.start
    if strength < 1:
        x = first["signal"] * LATENTS + first["std"] * NOISE[-1]
    x = ops.convert_to_tensor(x.astype("float32"))
    history = [ops.zeros_like(x)] * plan.depth
    for number in range(len(plan)):
        row = {name: values[number] for name, values in plan.rows.items()}
        said = model(ops.convert_to_numpy(x) * row["scale"], row["timestep"])
        if plan.needs_noise:
            row["drawn"] = ops.convert_to_tensor(NOISE[number])
        x, history = step(row, x, ops.convert_to_tensor(said), history, **plan.rule)
    return ops.convert_to_numpy(x), plan.rows["timestep"]


@pytest.mark.parametrize("cls, name", CASES)
def test_trajectories(cls, name, monkeypatch):
    config = {**STABLE, **CHANGES[name][0]}
    scheduler = Scheduler(cls, **config)
    for count, strength in RUNS:
        expected, timesteps = reference(cls, config, count, strength, monkeypatch)
        found, own = ours(scheduler, count, strength)
        np.testing.assert_allclose(own, timesteps, atol=2e-3)
        size = max(1, np.abs(expected).max())
        assert np.abs(found - expected).max() <= 2e-5 * size, (count, strength)


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_by_name_from_the_settings_of_another(name, tmp_path, monkeypatch):
    given = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **STABLE}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(given))
    cls, more = NAMES[name]
    config = diffusers.PNDMScheduler.from_pretrained(tmp_path).config
    theirs = getattr(diffusers, cls).from_config(config, **more)
    scheduler = Scheduler.load(tmp_path).like(name)
    found = ours(scheduler, 8, 1.0)[0]
    expected = reference(cls, theirs.config, 8, 1.0, monkeypatch)[0]
    assert np.abs(found - expected).max() <= 2e-5 * max(1, np.abs(expected).max())

    scheduler.save(tmp_path)  # diffusers reads it again
    again = getattr(diffusers, cls).from_pretrained(tmp_path).config
    assert all(again[key] == theirs.config[key] for key in scheduler.config)
    assert np.array_equal(ours(Scheduler.load(tmp_path), 8, 1.0)[0], found)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_training(kind):
    scheduler = Scheduler("ddim", **STABLE, prediction_type=kind)
    theirs = diffusers.DDIMScheduler.from_config({**STABLE, "prediction_type": kind})
    timesteps = np.array([3, 970])
    given = [torch.tensor(LATENTS), torch.tensor(NOISE[0]), torch.tensor(timesteps)]
    noised, target = scheduler.noised(LATENTS, NOISE[0], timesteps)
    np.testing.assert_allclose(noised, theirs.add_noise(*given), atol=1e-5)
    targets = {"epsilon": given[1], "sample": given[0]}
    expected = targets[kind] if kind in targets else theirs.get_velocity(*given)
    np.testing.assert_allclose(target, expected, atol=1e-5)
