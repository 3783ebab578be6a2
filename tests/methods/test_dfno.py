"""DFNO: the loss of its equation, the path of a Gaussian, one state as DMD's regression, its file, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import dmd
from dmd.config.methods.dfno import Dfno as Section
from dmd.config.training import Distill
from dmd.methods.base import Facts, Part
from dmd.methods.dfno import Dfno, state_weights
from dmd.methods.parts.distances import l2_distance
from dmd.models import loading
from dmd.models.networks import extended
from dmd.provenance import tensor_files
from dmd.sampling.noise import seeded_noise
from dmd.stages import manifest, pairs
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.trainer import plan
from tests.methods.test_every_method import METHODS, streams, train, trainer
from tests.trainings import NAMES, WHOLE, FixedRows, distil, weights

SIGMA, MEAN, STD = 10.0, 0.3, 0.5
LEVELS = torch.tensor([4.0, 0.5, 0.0])


def on_path(noise: Tensor, level: Tensor) -> Tensor:
    """The state at a level of the ODE of a Gaussian, from SIGMA times the noise."""
    return MEAN + (SIGMA * noise - MEAN) * ((STD**2 + level.square()) / (STD**2 + SIGMA**2)).sqrt()


class Exact(nn.Module):
    """The student that knows the states."""

    def path(self, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        places = [(level / SIGMA, on_path(image / SIGMA, level)) for level in LEVELS]
        return torch.stack([(state - place * image) / (1 - place) for place, state in places], 1)


def paths() -> dict[str, Tensor]:
    noise = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    states = torch.stack([on_path(noise, level) for level in LEVELS], 1)
    return {"noise": noise, "trajectory": states, "levels": LEVELS.expand(5, -1), "label": torch.full((5,), -1)}


def loss_of(rows: dict[str, Tensor], **keys: Any) -> tuple[Tensor, UpdateLog]:
    config = Section.model_validate({"name": "dfno", "sigma": SIGMA, "states": 3, **keys})
    networks: Any = {"student": Exact()}
    method = Dfno(config, networks, Facts((1, 2, 2), 0, STD), torch.device("cpu"), {"none": l2_distance})
    clock, log = plan(config)[0].clock(0), UpdateLog(WHOLE)
    (step,) = method.steps(config, clock)
    return method.loss(step, step.parts[0], rows, clock, log), log


def test_student_that_knows_the_path_of_a_gaussian_has_no_loss():
    loss, _ = loss_of(paths())
    assert float(loss) < 1e-10


def test_loss_is_the_mean_distance_of_variance_preserving_states_by_their_weights():
    rows = paths()
    rows["trajectory"] = rows["trajectory"] + 0.1 * torch.arange(1, 4)[:, None, None, None]
    loss, log = loss_of(rows, largest_weight=7.0)
    distances = [0.1**2 / (1 + 16), 0.2**2 / 1.25, 0.3**2]
    expected = sum(weight * each for weight, each in zip((1, 2, 7), distances, strict=True)) / (1 + 2 + 7)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    found = [float(log.value(f"distance/state{number}")) for number in range(3)]
    assert found == pytest.approx(distances, rel=1e-4)


def test_weights_have_mean_one_and_that_of_one_state_is_one_exactly():
    torch.testing.assert_close(state_weights(LEVELS, 100.0), torch.tensor([1.0, 2.0, 100.0]) / (103 / 3))
    assert torch.equal(state_weights(torch.zeros(1), 100.0), torch.ones(1))


def test_one_state_is_the_regression_of_dmd_alone_bit_for_bit():
    """The same student, after the same updates on the same pairs."""
    given = {"optimisers": {"student": {"learning_rate": 1e-3, "weight_decay": 0.01}}, "schedule": {"warmup": 2}}
    one = trainer({"name": "dfno", "states": 1, "batch_size": 6, "phases": [{"updates": 4}]}, **given)
    regression = {"regression_weight": 1.0, "regression_batch_size": 6, "matching_weight": 0.0}
    other = trainer({"name": "dmd", **regression, "phases": [{"updates": 4}]}, **given)
    one.networks["student"].load_state_dict(other.networks["student"].state_dict())
    start = weights(other.networks["student"])
    data = streams()
    rows = data["pairs"].rows(Part("pairs", 6), 0, slice(0, 6), torch.Generator())
    data["trajectories"] = FixedRows(rows | {"trajectory": rows["image"][:, None], "levels": torch.zeros(6, 1)})
    logs = [train(one, 0, 4, data), train(other, 0, 4, data)]
    found = [weights(each.networks["student"]) for each in (one, other)]
    assert torch.equal(*found) and not torch.equal(found[0], start)
    assert [row["loss/states"] for row in logs[0]] == [row["loss/regression"] for row in logs[1]]


def test_passes_of_an_update_are_those_of_every_state():
    (found,) = measured_steps(trainer(METHODS["dfno"]), streams())
    assert found.parts["trajectories"].passes == {"student": 3 * 3}


@pytest.fixture
def manifest_of_paths(teacher_file, pairs_numbers, tmp_path) -> Path:
    """Twelve pairs that keep two states each."""
    block = tmp_path / "pairs" / "blocks" / "00000-00001.parquet"
    pairs.run(teacher=teacher_file, output=block, **pairs_numbers, kept_states=2)
    manifest.run(blocks=[block], output=tmp_path / "pairs" / "manifest.parquet", num=12, shard_size=6)
    return tmp_path / "pairs" / "manifest.parquet"


def section(**keys: Any) -> dict:
    method = {"name": "dfno", "states": 2, "batch_size": 6, "phases": [{"updates": 4}], **keys}
    return {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}}


def test_distillation_writes_a_student_of_several_states_that_draws_the_last_one_in_one_call(
    teacher_file, manifest_of_paths, tmp_path
):
    folder = distil(tmp_path, section() | {"monitor": None}, teacher=teacher_file, manifest=manifest_of_paths)
    tensors, facts = tensor_files.load(folder / NAMES[0])
    teacher = tensor_files.load_metadata(teacher_file)
    assert facts["network"] == extended(teacher["network"], states=2) and facts["calls"]["sigmas"] == [80.0]
    assert bool(tensors["raw.state_convolutions.enc_8x8_block0.weight"].any())
    student, _ = loading.load_denoiser(folder / NAMES[0])
    noise, label = seeded_noise(range(3), (1, 8, 8), num_classes=10)[0], torch.full((3,), 4)
    states = student.path(80 * noise, torch.full((3,), 80.0), label)  # type: ignore[operator]
    image = dmd.load(folder / NAMES[0])(num=3, label=4)
    assert states.shape == (3, 2, 1, 8, 8)
    torch.testing.assert_close(image, states[:, -1], rtol=0, atol=1e-5)


def test_another_number_of_states_than_the_pairs_keep_is_refused(teacher_file, manifest_of_paths, tmp_path):
    with pytest.raises(ValueError, match=r"distill\.method\.states: 3, but .* holds 2 states of each trajectory"):
        distil(tmp_path, section(states=3), teacher=teacher_file, manifest=manifest_of_paths)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"states": 0}, "greater than or equal to 1"),
        ({"states": 65}, "less than or equal to 64"),
        ({"metric": {"kind": "l2", "decoder": "tiny"}}, "metric.decoder: tiny, but the states before the last one"),
    ],
)
def test_section_refuses_what_contradicts_itself(keys, message):
    with pytest.raises(ValidationError, match=message):
        Section.model_validate({"name": "dfno"} | keys)


def test_adapters_are_refused():
    with pytest.raises(ValidationError, match="adapter: method dfno does not support it"):
        Distill.model_validate({"method": METHODS["dfno"], "adapter": {"rank": 2}})
