"""Schedulers of diffusers as solvers: latents of the stock pipeline, calls, first times, and what they cannot do."""

import functools
import json
import re
from itertools import product
from typing import Any

import pytest
import scipy
import torch
from torch import nn

import dmd
from dmd import torchvision_operators
from dmd.models import loading
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.guidance import with_guidance
from dmd.sampling import schedulers
from dmd.sampling.sampler import Sampler
from dmd.sampling.solvers import solve
from dmd.stages import teacher
from tests.stable_diffusion_files import SCHEDULER, make_stable_diffusion

SD15 = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "trained_betas": None, **SCHEDULER}
SOLVERS: list[dict[str, Any]] = [
    {"name": "pndm", "steps": 6},
    {"name": "pndm", "steps": 5, "spacing": "trailing"},
    {"name": "ddim", "steps": 4},
    {"name": "ddim", "steps": 2, "spacing": "linspace"},
    {"name": "dpmsolver++", "steps": 4},
    {"name": "unipc", "steps": 4},
    {"name": "heun-discrete", "steps": 3},
    {"name": "euler-discrete", "steps": 4, "spacing": "trailing"},
    {"name": "lcm", "steps": 1},
]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def opened(request, tmp_path_factory) -> tuple[Any, Denoiser, torch.Tensor]:
    """The stock pipeline, our denoiser, and the text states of no prompt."""
    folder = tmp_path_factory.mktemp("sd")
    make_stable_diffusion(folder / "sd", prediction=request.param)
    teacher.run(
        output=folder / "t.safetensors", table=folder / "log.parquet", kind="stable-diffusion", source=folder / "sd"
    )
    torchvision_operators.ensure()
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder / "sd", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, loading.load_denoiser(folder / "t.safetensors")[0], loading.load_empty(folder / "t.safetensors")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: f"{solver['name']}-{solver.get('spacing', 'own')}")
def test_latents_are_those_of_the_stock_pipeline(solver, guidance, opened):
    torchvision_operators.ensure()
    import diffusers

    pipeline, denoiser, empty = opened
    name, numbers = schedulers.CLASSES[solver["name"]]
    numbers = numbers | ({"timestep_spacing": solver["spacing"]} if "spacing" in solver else {})
    before, calls = pipeline.scheduler, []
    pipeline.scheduler = getattr(diffusers, name).from_config(before.config, **numbers)
    hook = pipeline.unet.register_forward_hook(lambda *given: calls.append(1))
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    states = pipeline.encode_prompt(["a photo of a cat", "red house"], "cpu", 1, False)[0].detach()
    given = {"prompt": ["a photo of a cat", "red house"], "latents": noise, "output_type": "latent"}
    try:
        expected = pipeline(**given, num_inference_steps=solver["steps"], guidance_scale=guidance).images
    finally:
        pipeline.scheduler = before
        hook.remove()
    found, num_calls = solve(with_guidance(denoiser, empty, guidance), noise, states, solver)
    assert num_calls == len(calls) and float(found.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(
    ("solver", "first", "calls"),
    [
        ({"name": "pndm", "steps": 50}, 981, 51),
        ({"name": "pndm", "steps": 50, "spacing": "trailing"}, 999, 51),
        ({"name": "ddim", "steps": 50}, 981, 50),
        ({"name": "dpmsolver++", "steps": 4}, 999, 4),
        ({"name": "unipc", "steps": 4}, 999, 4),
        ({"name": "heun-discrete", "steps": 4}, 999, 7),
        ({"name": "lcm", "steps": 4}, 999, 4),
    ],
)
def test_calls_and_first_time_are_counted_not_assumed(solver, first, calls):
    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def forward(self, image, condition, label):
            self.times.append(float(condition[0]))
            return torch.zeros_like(image)

    numbers = {"kind": "discrete", "alphas_cumprod": [0.9, 0.1], "prediction": "epsilon"}
    denoiser = Denoiser(Zero(), sigma_data=1.0, preconditioning=numbers)
    denoiser.scheduler = SD15
    _, found = solve(denoiser, torch.randn(1, 4, 2, 2), torch.tensor([-1]), solver)
    assert found == calls == len(denoiser.network.times)
    assert denoiser.network.times[0] == first == schedulers.first_timestep(SD15, solver)


def test_noise_of_later_steps_depends_on_the_sample_alone(opened):
    _, denoiser, empty = opened
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    solver = {"name": "lcm", "steps": 3}
    whole, calls = solve(denoiser, noise, empty.expand(3, -1, -1), solver)
    parts = [solve(denoiser, noise[[row]], empty[None], solver)[0] for row in (2, 0, 1)]
    torch.testing.assert_close(whole[[2, 0, 1]], torch.cat(parts), rtol=1e-4, atol=1e-4)
    (one_step, _) = solve(denoiser, noise, empty.expand(3, -1, -1), {"name": "lcm", "steps": 1})
    assert calls == 3 and not torch.allclose(whole, one_step, atol=0.1)


class Line(nn.Module):
    """Knows where each straight line ends, whatever its time: its velocity never changes."""

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity = velocity
        self.times: list[float] = []

    def forward(self, image, condition, label):
        self.times.append(float(condition[0]))
        return self.velocity


@pytest.mark.parametrize("steps", [1, 4])
def test_rectified_flow_follows_straight_lines_to_their_end(steps):
    generator = torch.Generator().manual_seed(0)
    noise, image = torch.randn(2, 3, 4, 8, 8, generator=generator).unbind()
    solver = {"name": "rectified-flow", "steps": steps}
    for velocity, prediction in ((image - noise, "x0 - noise"), (noise - image, "noise - x0")):
        levels = {"kind": "flow", "prediction": prediction}
        denoiser = Denoiser(Line(velocity), sigma_data=1.0, preconditioning=levels)
        found, calls = solve(denoiser, noise, torch.full((3,), -1), solver)
        torch.testing.assert_close(found, image)
        assert calls == steps and denoiser.network.times == [1000.0 * (1 - step / steps) for step in range(steps)]
    assert schedulers.first_timestep(None, solver) == 1000


def test_pixels_are_clipped_as_the_scheduler_of_the_teacher_says_or_by_default():
    denoiser = Denoiser(Line(torch.zeros(2, 3, 4, 4)), sigma_data=1.0, preconditioning={"kind": "flow"})
    noise, label = torch.full((2, 3, 4, 4), 3.0), torch.full((2,), -1)
    for config, clipped in ((SD15 | {"clip_sample": False}, False), (SD15, True)):
        denoiser.scheduler = config
        found, _ = solve(denoiser, noise, label, {"name": "ddim", "steps": 1})
        assert bool((found.abs() < 1.01).all()) == clipped


def test_solver_that_does_not_fit_the_denoiser_is_named():
    noise, label = torch.zeros(1, 2, 1, 1), torch.tensor([-1])
    exact = GaussianMixtureDenoiser(torch.zeros(1, 2, 1, 1), torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="'pndm' needs a denoiser with a network, not GaussianMixtureDenoiser"):
        solve(exact, noise, label, {"name": "pndm", "steps": 4})
    denoiser = Denoiser(Line(noise), sigma_data=1.0)
    with pytest.raises(ValueError, match="solver 'ddim' needs a teacher that comes with a scheduler"):
        solve(denoiser, noise, label, {"name": "ddim", "steps": 4})
    denoiser.scheduler = SD15
    with pytest.raises(ValueError, match="solver 'ddim' with 2000 steps cannot be used .*num_inference_steps"):
        solve(denoiser, noise, label, {"name": "ddim", "steps": 2000})
    with pytest.raises(ValueError, match="solver 'rectified-flow' needs a teacher whose network predicts a velocity"):
        solve(denoiser, noise, label, {"name": "rectified-flow", "steps": 4})
    with pytest.raises(ValueError, match="solver 'dpm' is not one of"):
        solve(denoiser, noise, label, {"name": "dpm", "steps": 4})


SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
BETAS = (
    *({"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")),
    {"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
)


class Unit(nn.Module):
    """Its output is unit noise, another one for each time."""

    def forward(self, image, condition, label):
        generator = torch.Generator().manual_seed(int(1000 * abs(float(condition[0]))))
        return torch.randn(image.shape, generator=generator)


@pytest.mark.parametrize("name", schedulers.CLASSES)
def test_what_a_scheduler_cannot_do_is_refused_in_a_line_and_all_else_ends_with_finite_numbers(name, monkeypatch):
    # HeunDiscreteScheduler computes a thousand quantiles, always the same, each time that it is made.
    monkeypatch.setattr(scipy.stats.beta, "ppf", functools.cache(scipy.stats.beta.ppf))
    denoiser = Denoiser(Unit(), sigma_data=1.0, preconditioning={"kind": "flow"})
    noise, label = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((2,), -1)
    drawn = 0
    for sigmas, betas, prediction, steps in product(
        (None, *SIGMAS), BETAS, ("epsilon", "v_prediction", "sample"), (1, 2, 5)
    ):
        config = SCHEDULER | betas | {"prediction_type": prediction} | ({sigmas: True} if sigmas else {})
        solver = {"name": name, "steps": steps}
        try:
            schedulers.check({"scheduler": config}, solver)
        except ValueError as error:
            assert "\n" not in str(error) and f"solver '{name}' with {steps} steps cannot be used" in str(error)
            assert prediction == "epsilon" or f"prediction_type '{prediction}'" in str(error)
            continue
        denoiser.scheduler = config
        assert solve(denoiser, noise, label, solver)[0].isfinite().all(), (config, solver)
        drawn += 1
    assert drawn > 100


@pytest.mark.parametrize(
    ("name", "field", "reason"),
    [("dpmsolver++", "use_karras_sigmas", "IndexError"), ("unipc", "use_beta_sigmas", "AssertionError")],
)
def test_a_teacher_whose_scheduler_fails_is_neither_imported_nor_loaded(tmp_path, name, field, reason):
    folder = make_stable_diffusion(tmp_path / "sd")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"beta_schedule": "squaredcos_cap_v2", field: True}
    path.write_text(json.dumps(config | {"_class_name": "UniPCMultistepScheduler"}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"scheduler": ["diffusers", "UniPCMultistepScheduler"]})
    )
    out, solver = tmp_path / "t.safetensors", {"name": name, "steps": 5}
    line = f"solver '{re.escape(name)}' with 5 steps cannot be used .*: {reason}.*squaredcos_cap_v2.*{field} True"
    arguments = {"output": out, "table": tmp_path / "log.parquet", "kind": "stable-diffusion", "source": folder}
    with pytest.raises(ValueError, match=f"{folder}: a.pairs.solver: {line}"):
        teacher.run(**arguments, solvers={"a.pairs.solver": solver})
    assert not out.exists()
    teacher.run(**arguments, solvers={"a.pairs.solver": {"name": "ddim", "steps": 5}})
    for draw in (lambda: Sampler(out, solver=solver), lambda: dmd.load(out, solver=name, steps=5)):
        with pytest.raises(ValueError, match=f"{out}: {line}"):
            draw()


def test_teacher_without_signal_at_the_end_is_drawn_by_schedulers_that_know_it(tmp_path):
    make_stable_diffusion(tmp_path / "sd", prediction="v_prediction", zero_snr=True)
    out = tmp_path / "t.safetensors"
    arguments = {"output": out, "table": tmp_path / "log.parquet", "kind": "stable-diffusion"}
    with pytest.raises(ValueError, match="solver 'pndm' would ignore rescale_betas_zero_snr .*: use ddim, dpmsolver"):
        teacher.run(**arguments, source=tmp_path / "sd", solvers={"x": {"name": "pndm", "steps": 5}})
    teacher.run(**arguments, source=tmp_path / "sd", calls={"x": {"calls": 4, "times": {"kind": "lcm"}}})
    with pytest.raises(ValueError, match="x: distill.method.times: lcm cannot make 4 calls .*original_steps"):
        wrong = {"calls": 4, "times": {"kind": "lcm", "original_inference_steps": 2000}}
        teacher.run(**arguments, source=tmp_path / "sd", calls={"x": wrong})
    assert dmd.load(out, batch_size=2).solver == {"name": "ddim", "steps": 50}
    torchvision_operators.ensure()
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    states = pipeline.encode_prompt(["a photo of a cat", "red house"], "cpu", 1, False)[0].detach()
    given = {"prompt_embeds": states, "latents": noise, "output_type": "latent", "guidance_scale": 1}
    expected = pipeline(**given, num_inference_steps=4).images
    denoiser = loading.load_denoiser(out)[0]
    found, _ = solve(denoiser, noise, states, {"name": "ddim", "steps": 4, "spacing": "trailing"})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    x0 = denoiser(1e8 * noise, torch.full((2,), 1e8), states)  # the network's own output, -v, at pure noise
    own = -pipeline.unet(noise, 999, encoder_hidden_states=states).sample
    torch.testing.assert_close(x0, own, rtol=1e-4, atol=1e-4)
