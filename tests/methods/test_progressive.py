"""Progressive distillation: its target and levels in an analytic world, its rounds, and the students it keeps."""

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.method_base import STUDENT, TEACHER
from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.methods.progressive import Progressive, two_steps
from dmd.models import loading
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling.noise import sampling_sigmas
from dmd.sampling.ode_solvers import euler
from dmd.stages import distill
from dmd.train import checkpoints, state
from dmd.train.data import ImageStream
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.image_shards import image_shards

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 8, "layers": 2, "num_classes": 0}
UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 8, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [], "num_classes": 10, "dropout": 0.0}
DIGITS = {"kind": "digits", "split_seed": 0, "num_training": 64}
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
MEAN, STD = 0.3, 0.5


def section(steps: list[int], updates: int = 4, **changed) -> Distill:
    """A training of rounds of so many steps."""
    phase = {"updates": updates} | changed.pop("phase", {})
    phases = [{"steps": number} | phase for number in steps]
    method = {"name": "progressive", "batch_size": 6, "phases": phases} | changed.pop("method", {})
    student = {"learning_rate": 1e-2}
    plain = {"method": method, "optimisers": {"student": student}, "ema_decay": 0.5, "monitor": None}
    return Distill.model_validate(plain | changed)


def method(steps: list[int], teacher: nn.Module, student: nn.Module, **changed) -> Progressive:
    config = section(steps, method=changed).method
    facts = Facts((1, 1, 1), 0, STD, sigma_max=80.0)
    return Progressive(config, {TEACHER: teacher, STUDENT: student}, facts, torch.device("cpu"))


def gaussian(mean: float = MEAN, std: float = STD) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), mean), torch.tensor([std]), torch.ones(1))


def mixture() -> GaussianMixtureDenoiser:
    means = torch.tensor([-1.0, 0.8]).reshape(2, 1, 1, 1)
    return GaussianMixtureDenoiser(means, torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.6]))


def images(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def step(denoiser, image: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Phi: DDIM."""
    ratio = per_sample(following / sigma, image)
    return ratio * image + (1 - ratio) * denoiser(image, sigma, torch.full((len(image),), -1))


def test_target_of_a_gaussian_has_the_reference_values():
    levels = tuple(torch.tensor([value], dtype=torch.float64) for value in (10.0, 6.0, 3.0))
    image, teacher = images(2.0), gaussian()
    end = step(teacher, step(teacher, image, levels[0], levels[1]), levels[1], levels[2])
    assert end.item() == pytest.approx(0.81437, abs=1e-5)
    target = two_steps(teacher, image, levels, torch.tensor([-1]))
    assert target.item() == pytest.approx(0.30624, abs=1e-5)


def test_one_step_with_the_target_ends_where_two_steps_of_the_teacher_end():
    first, second, third = torch.tensor([[80.0, 3.0, 0.5], [20.0, 1.0, 0.1], [7.0, 0.2, 0.0]], dtype=torch.float64)
    image, teacher, label = images(90.0, -2.0, 0.4), mixture(), torch.full((3,), -1)
    end = step(teacher, step(teacher, image, first, second), second, third)
    target = two_steps(teacher, image, (first, second, third), label)
    torch.testing.assert_close(step(lambda *_: target, image, first, third), end, rtol=1e-13, atol=1e-13)
    high, low = per_sample(first, image), per_sample(third, image)
    torch.testing.assert_close(target, (high * end - low * image) / (high - low), rtol=1e-12, atol=1e-12)
    assert torch.equal(target[2], end[2])  # where the last level is 0


def test_the_target_keeps_its_digits_in_float32():
    levels = sampling_sigmas(512, **GRID)
    trios = [tuple(level[None] for level in levels[start : start + 3]) for start in (0, 200, 508, 510)]
    for trio in trios:
        image, label = images(0.7) * trio[0], torch.tensor([-1])
        exact = two_steps(mixture(), image, trio, label)
        rough = two_steps(mixture(), image.float(), tuple(level.float() for level in trio), label)
        torch.testing.assert_close(rough.double(), exact, rtol=3e-5, atol=1e-6)


class ExactStudent(nn.Module):
    """The network of the exact denoiser of a Gaussian under EDM's scales with sigma_data = STD."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        sigma = (4 * condition).exp()
        return self.factor * per_sample(sigma * MEAN / (STD * (STD**2 + sigma.square()).sqrt()), image) + 0 * image


def test_the_exact_student_is_a_fixed_point_of_ever_finer_steps():
    student = Denoiser(ExactStudent(), sigma_data=STD).double()
    losses, slopes = [], []
    for steps in (16, 64, 256):
        found = method([steps], gaussian(), student)
        found.sigmas = found.sigmas.double()
        draws = torch.randn(2, 1000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        place = torch.arange(steps).repeat_interleave(len(draws[0]))
        image, noise = (values.repeat(steps, 1, 1, 1) for values in draws)
        rows = {"image": MEAN + STD * image, "noise": noise, "label": torch.full_like(place, -1), "step": place}
        loss = found.loss(None, None, rows, None, Quiet())
        (slope,) = torch.autograd.grad(loss, list(student.parameters()))
        losses.append(loss.item())
        slopes.append(abs(slope.item()))
    for coarse, fine in zip(losses, losses[1:], strict=False):
        assert fine < coarse / 8  # the error of a step is of order 1 / steps, its square is in the loss
    for coarse, fine in zip(slopes, slopes[1:], strict=False):
        assert fine < coarse / 2.5


class Quiet:
    """A log that keeps nothing."""

    def scalar(self, name: str, value: Tensor, rows: int) -> None: ...

    def binned(self, name: str, values: Tensor, bins: Tensor, num_bins: int) -> None: ...


def test_levels_of_a_round_are_every_second_one_of_the_round_before():
    found = method([32, 16, 8, 4, 2, 1], gaussian(), gaussian())
    phases, _ = found.config.plan()
    levels = [found.levels(phase) for phase in phases]
    assert torch.equal(levels[0], sampling_sigmas(64, **GRID))
    for before, after in zip(levels, levels[1:], strict=False):
        assert torch.equal(after, before[::2])
    for phase, grid in zip(phases, levels, strict=True):
        found.configure(phase)
        assert found.sigmas.dtype == torch.float32 and found.sigmas[0] == 80.0 and found.sigmas[-1] == 0.0
        assert len(grid) == 2 * phase.config.steps + 1
        assert found.sampling() == Calls(tuple(found.sigmas[:-1:2].tolist()), between="ode")
        assert len(found.sampling().sigmas) == phase.config.steps
    assert found.sampling().sigmas == (80.0,)
    assert 1.0 < levels[-1][1] < 5.0  # two steps over the levels that decide an image, none from sigma_min to 0


def test_sigma_max_of_null_is_the_last_level_of_the_file():
    assert method([2], gaussian(), gaussian(), sigma_max=None).sigmas[0] == 80.0
    with pytest.raises(ValueError, match="sigma_max: null"):
        config = section([2], method={"sigma_max": None}).method
        networks = {TEACHER: gaussian(), STUDENT: gaussian()}
        Progressive(config, networks, Facts((1, 1, 1), 0, STD), torch.device("cpu"))


def test_students_that_learn_all_of_every_round_draw_in_one_call_what_the_first_teacher_draws_in_all_of_its_steps():
    found = method([8, 4, 2, 1], mixture(), mixture())
    phases, _ = found.config.plan()
    first = found.levels(phases[0])

    def learnt(teacher, levels: Tensor):
        """Equal to the target at each level of the student; it knows no other."""
        trios = {levels[place].item(): levels[place : place + 3] for place in range(0, len(levels) - 2, 2)}

        def student(image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            trio = tuple(level.expand(len(image)) for level in trios[sigma[0].item()])
            return two_steps(teacher, image, trio, label)

        return student

    image, label = 80 * images(-1.5, -0.2, 0.1, 2.0), torch.full((4,), -1)
    expected = euler(mixture(), image, label, first)
    denoiser = mixture()
    for phase in phases:
        denoiser = learnt(denoiser, found.levels(phase))
        levels = found.levels(phase)[::2]
        torch.testing.assert_close(euler(denoiser, image, label, levels), expected, rtol=1e-10, atol=1e-10)
    sigma = torch.full((4,), 80.0, dtype=torch.float64)
    torch.testing.assert_close(denoiser(image, sigma, label), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("truncated-snr", [16.0, 1.0, 1.0]), ("snr+1", [17.0, 2.0, 1.25]), ("network", [20.0, 5.0, 4.25])],
)
def test_weights_follow_their_formulas(weighting, expected):
    found = method([1], gaussian(), Denoiser(ExactStudent(), sigma_data=STD), weighting=weighting)
    torch.testing.assert_close(found.weight(torch.tensor([0.25, 1.0, 2.0])), torch.tensor(expected))


def test_rounds_that_do_not_halve_and_unknown_students_to_keep_are_refused():
    with pytest.raises(ValidationError, match="steps 3 is not half of the 8"):
        section([8, 3])
    with pytest.raises(ValidationError, match="no round has 16 steps"):
        section([8, 4], method={"keep": [8, 16]})


def test_learning_rates_fall_within_a_round_unless_the_schedule_says_otherwise():
    schedule = section([2, 1]).schedule
    assert (schedule.over, schedule.decay, schedule.warmup) == ("phase", "linear", 0)
    assert section([2, 1], schedule={"decay": "constant"}).schedule.decay == "constant"
    assert section([2, 1]).optimisers[STUDENT].weight_decay == 0


class Points:
    """Images of the plane."""

    labels, num_classes = torch.zeros(0), 0

    def __init__(self) -> None:
        self.values = torch.randn(50, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor) -> Tensor:
        return self.values[indices]


def points(training: Distill) -> Trainer:
    """Teacher and student of equal random weights."""
    torch.manual_seed(0)
    teacher = Denoiser(build(MLP), sigma_data=0.5)
    modules = {TEACHER: teacher, STUDENT: copy.deepcopy(teacher)}
    facts = Facts((2, 1, 1), 0, 0.5, sigma_max=80.0)
    found = assemble(training, modules, facts, distances={}, split=distill.BatchSplit())
    return found


def run(trainer: Trainer, first: int, stop: int) -> None:
    """Updates first .. stop - 1."""
    phases, _ = plan(trainer.training.method)
    batches = loader(trainer, {"images": ImageStream(Points())}, phases, stage="distill")
    for update in range(first, stop):
        trainer.update(phases.clock(update), batches.take(update))
    batches.close()


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


@pytest.mark.parametrize("source", ["raw", "averaged"])
def test_a_round_begins_with_the_student_of_the_round_before_as_teacher_and_student(source):
    trainer = points(section([4, 2, 1], method={"next_teacher": source}))
    networks, begun = trainer.networks, weights(trainer.networks[TEACHER])
    run(trainer, 0, 4)
    assert torch.equal(weights(networks[TEACHER]), begun)  # of the file, in the first round
    learnt = weights(networks[STUDENT] if source == "raw" else networks.average.module)
    assert not torch.equal(weights(networks[STUDENT]), weights(networks.average.module))
    run(trainer, 4, 5)
    assert torch.equal(weights(networks[TEACHER]), learnt)
    moved = (weights(networks[STUDENT]) - learnt).abs().max()
    assert 0 < moved <= 1.01e-2  # one step of Adam from the teacher, its moments being forgotten
    run(trainer, 5, 8)
    assert torch.equal(weights(networks[TEACHER]), learnt)


def test_a_round_begins_with_fresh_moments_average_and_learning_rate():
    trainer = points(section([2, 1]))
    optimiser = trainer.networks.optimisers[STUDENT].adamw
    rates = []
    for update in range(6):
        run(trainer, update, update + 1)
        rates.append(optimiser.param_groups[0]["lr"])
        counts = {int(entry["step"]) for entry in optimiser.state.values()}
        assert counts == {update % 4 + 1}
        if update in (0, 4):
            assert torch.equal(weights(trainer.networks.average.module), weights(trainer.networks[STUDENT]))
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2, 1e-2, 0.75e-2])


def test_moments_and_average_go_on_where_the_round_says_so():
    trainer = points(section([2, 1], phase={"fresh_optimiser": False, "fresh_average": False}))
    run(trainer, 0, 5)
    assert {int(entry["step"]) for entry in trainer.networks.optimisers[STUDENT].adamw.state.values()} == {5}
    assert not torch.equal(weights(trainer.networks.average.module), weights(trainer.networks[STUDENT]))


def test_a_student_without_error_has_no_loss():
    """Teacher and student of one denoiser whose answer is the same everywhere."""
    trainer = points(section([2]))
    for role in (TEACHER, STUDENT):
        for parameter in trainer.networks[role].parameters():
            parameter.data.zero_()
        trainer.networks[role].preconditioning.sigma_data = 0.0  # c_skip and c_out are 0
    run(trainer, 0, 1)
    assert weights(trainer.networks[STUDENT]).abs().max() == 0


@pytest.mark.parametrize("update", range(1, 12))
def test_a_checkpoint_anywhere_leads_to_the_same_student(tmp_path, update):
    training = section([4, 2, 1], method={"keep": [4, 2], "next_teacher": "averaged"})
    whole = points(training)
    run(whole, 0, 12)
    begun = points(training)
    run(begun, 0, update)
    learnt = state.state(begun)
    checkpoints.save(tmp_path, key="k", stage="distill", update=update, tensors=learnt, rows=[])
    resumed = points(training)
    assert checkpoints.resume(tmp_path, key="k", trainer=resumed, log=print) == (update, [])
    run(resumed, update, 12)
    expected, found = state.state(whole), state.state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert any(name.startswith("network.teacher.") for name in learnt)


def test_students_are_kept_as_they_are_at_the_end_of_their_round():
    trainer = points(section([4, 2, 1], method={"keep": [4, 2, 1]}))
    averages = {}
    for number, stop in {"4": 4, "2": 8, "1": 12}.items():
        run(trainer, stop - 4, stop)
        averages[number] = copy.deepcopy(trainer.networks.average.module.state_dict())
    found = state.student_weights(trainer, None)
    for number, average in averages.items():
        prefix = "ema." if number == "1" else f"ema@{number}."
        tensors = tensor_files.part(prefix, found)
        assert tensors.keys() == average.keys()
        assert all(torch.equal(value, tensors[name]) for name, value in average.items())
    assert {name.partition(".")[0] for name in found} == {"raw", "ema", "ema@4", "ema@2"}
    assert {number: len(calls.sigmas) for number, calls in trainer.earlier_calls(12).items()} == {"4": 4, "2": 2}
    assert trainer.earlier_calls(7).keys() == {"4"}


def without_a_student(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def with_another(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return kept | {name.replace("kept.4", "kept.3"): value.clone() for name, value in kept.items()}


def without_a_tensor(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict([*kept.items()][1:])


def with_another_tensor(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return kept | {"kept.4.odd": torch.zeros(1)}


def with_another_shape(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    return kept | {next(iter(kept)): torch.zeros(77)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_student, "kept.4 is missing"),
        (with_another, "kept.3 is unknown"),
        (without_a_tensor, r"kept.4.\S+ is missing"),
        (with_another_tensor, "kept.4.odd is unknown"),
        (with_another_shape, r"kept.4.\S+ is float32 \(77,\)"),
    ],
)
def test_a_checkpoint_with_other_kept_students_is_refused(tmp_path, change, message):
    training = section([4, 2], method={"keep": [4]})
    trainer = points(training)
    run(trainer, 0, 5)
    learnt = state.state(trainer)
    kept = {name: value for name, value in learnt.items() if name.startswith("kept.")}
    learnt = {name: value for name, value in learnt.items() if name not in kept} | change(kept)
    checkpoints.save(tmp_path, key="k", stage="distill", update=5, tensors=learnt, rows=[])
    with pytest.raises(ValueError, match=message):
        checkpoints.resume(tmp_path, key="k", trainer=points(training), log=print)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    """A denoiser of digits with random weights."""
    torch.manual_seed(0)
    tensors = {f"{name}.{key}": value for name in ("raw", "ema") for key, value in build(UNET).state_dict().items()}
    facts = {"kind": "train", "network": UNET, "shape": [1, 8, 8], "num_classes": 10, "sigma_data": 0.75}
    tensor_files.save(path := tmp_path_factory.mktemp("teacher") / "denoiser.safetensors", tensors, facts)
    return path


def distilled(folder: Path, teacher: Path, training: Distill) -> Path:
    folder.mkdir(exist_ok=True)
    files = {"output": folder / "generator.safetensors", "table": folder / "log.parquet"}
    files["images"] = image_shards(folder.parent, DIGITS)
    distill.run(teacher=teacher, distill=training, device="cpu", threads=1, **files)
    return files["output"]


def test_runs_that_broke_off_around_the_end_of_a_round_end_in_the_same_bytes(tmp_path, teacher_file):
    def training(every: int) -> Distill:
        rounds = {"keep": [2], "batch_size": 4}
        return section([4, 2, 1], updates=2, method=rounds, checkpoint_every=every, grid_every=every)

    whole = distilled(tmp_path / "whole", teacher_file, training(100))
    for update in (3, 4, 5):
        folder = tmp_path / f"broken{update}"
        folder.mkdir()
        (folder / "grids").write_text("where a folder should be")  # found out once the checkpoint is written
        with pytest.raises(OSError):
            distilled(folder, teacher_file, training(update))
        assert [path.stem for path in (folder / "checkpoints").glob("[0-9]*")] == [f"{update:08d}"]
        (folder / "grids").unlink()
        assert distilled(folder, teacher_file, training(100)).read_bytes() == whole.read_bytes()
        assert (folder / "log.parquet").read_bytes() == (tmp_path / "whole" / "log.parquet").read_bytes()


@pytest.mark.parametrize("adapter", [None, {"rank": 2}])
def test_the_file_holds_each_student_with_its_calls(tmp_path, teacher_file, adapter):
    training = section([4, 2, 1], updates=2, method={"keep": [4, 2]}, adapter=adapter)
    path = distilled(tmp_path, teacher_file, training)
    tensors, facts = tensor_files.load(path)
    assert facts["calls_kept"].keys() == {"2", "4"} and len(facts["calls"]["sigmas"]) == 1
    noise, label = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 4])
    drawn = []
    for number in (4, 2, 1):
        denoiser, said = loading.load_denoiser(path, calls=number)
        prefix = "ema." if number == 1 else f"ema@{number}."
        for name, value in denoiser.network.state_dict().items():
            assert torch.equal(value, tensors[prefix + name])
        calls = Calls.of(said["calls"])
        assert calls == loading.student_calls(facts, path, calls=number)
        assert len(calls.sigmas) == number and calls.sigmas[0] == said["sigma"] == 80.0 and calls.between == "ode"
        drawn.append(calls.draw(denoiser, noise, label, lambda number: noise))
    assert all(image.isfinite().all() for image in drawn) and not torch.equal(drawn[0], drawn[2])
    last, said = loading.load_denoiser(path)
    assert said == facts and torch.equal(weights(last), weights(loading.load_denoiser(path, calls=1)[0]))
    with pytest.raises(ValueError, match="is no student of 8 calls, but of 2, 4, 1"):
        loading.load_denoiser(path, calls=8)
    with pytest.raises(ValueError, match="holds no 'raw@4' weights"):
        loading.load_denoiser(path, weights="raw", calls=4)
    with pytest.raises(ValueError, match="is no student"):
        loading.load_denoiser(teacher_file, calls=1)
