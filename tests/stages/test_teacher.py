"""Stage teacher: the same bytes again, both kinds, clear refusals."""

import pytest
import torch

from dmd import loading
from dmd.artifacts import record, tensors
from dmd.stages import teacher
from tests.conftest import with_training

MIXTURE = {
    "kind": "gaussian-mixture",
    "means": [[-1.0, 0.0], [1.0, 0.0]],
    "stds": [0.2, 0.4],
    "weights": [1.0, 3.0],
    "num_training": 10,
    "num_held_out": 10,
    "seed": 0,
}


def test_teacher_from_nothing_has_the_same_bytes_again(teacher_file, teacher_numbers, tmp_path):
    torch.rand(3)  # the global generator stands elsewhere
    teacher.run(output=tmp_path / "denoiser.safetensors", **with_training(teacher_numbers))
    assert (tmp_path / "denoiser.safetensors").read_bytes() == teacher_file.read_bytes()
    assert record.check(teacher_file)


def test_teacher_says_what_it_is(teacher_file, teacher_numbers):
    found, metadata = tensors.load(teacher_file)
    assert metadata["shape"] == [1, 8, 8] and metadata["num_classes"] == 10 and metadata["kind"] == "train"
    assert metadata["network"] == {**teacher_numbers["network"], "channels": 1, "resolution": 8, "num_classes": 10}
    assert 0.5 < metadata["sigma_data"] < 1
    training = with_training(teacher_numbers)["training"].learnt_from()
    assert metadata["spec"] == {**teacher_numbers, "training": training, "device": "cpu", "threads": 1}
    raw, ema = ({name[4:] for name in found if name.startswith(prefix)} for prefix in ("raw.", "ema."))
    assert raw == ema and any(not torch.equal(found[f"raw.{name}"], found[f"ema.{name}"]) for name in raw)


def test_another_seed_gives_other_weights(teacher_file, teacher_numbers, tmp_path):
    teacher.run(output=tmp_path / "t", **with_training(teacher_numbers, seed=1))
    one, other = (tensors.load(path)[0] for path in (teacher_file, tmp_path / "t"))
    assert not torch.equal(one["ema.map_layer0.weight"], other["ema.map_layer0.weight"])


def test_mixture_teacher_is_the_exact_denoiser_of_its_dataset(tmp_path):
    teacher.run(output=tmp_path / "t", kind="gaussian-mixture", dataset=MIXTURE)
    denoiser, metadata = loading.load_denoiser(tmp_path / "t")
    assert metadata["shape"] == [2, 1, 1] and metadata["num_classes"] == 0
    variance = 0.25 * 0.04 + 0.75 * 0.16 + 0.75 / 2  # within modes, and between them along one of two axes
    assert metadata["sigma_data"] == pytest.approx(variance**0.5)
    far = denoiser(torch.zeros(1, 2, 1, 1), torch.tensor([1e4]), torch.tensor([-1]))
    assert far.flatten().tolist() == pytest.approx([0.5, 0.0], abs=1e-4)  # the mean of the data


def test_a_diverging_teacher_stops_with_the_update_and_leaves_nothing(teacher_numbers, tmp_path):
    teacher_numbers["training"] |= {"optimisers": {"student": {"learning_rate": 1e30}}, "schedule": {"warmup": 0}}
    with pytest.raises(
        ValueError, match=r"not finite at update \d+: lower teacher.training.optimisers.student.learning_rate"
    ):
        teacher.run(output=tmp_path / "t", **with_training(teacher_numbers))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "guess"}, "kind 'guess'"),
        ({"network": None}, "'train' needs dataset, network and training"),
        ({"kind": "edm"}, "'edm', .* a source"),
        ({"kind": "gaussian-mixture"}, "needs a dataset of that kind, got 'digits'"),
        ({"network": {"kind": "mlp", "width": 8}}, "layers"),
    ],
)
def test_teacher_refuses_numbers_that_do_not_fit(teacher_numbers, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        teacher.run(output=tmp_path / "t", **with_training(teacher_numbers) | changed)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_architecture_are_refused_in_one_line(teacher_file, tmp_path):
    found, metadata = tensors.load(teacher_file)
    metadata["network"]["width"] = 16
    tensors.save(tmp_path / "t", found, metadata)
    with pytest.raises(ValueError, match="holds another architecture: size mismatch") as refused:
        loading.load_denoiser(tmp_path / "t")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="holds no 'best' weights"):
        loading.load_denoiser(teacher_file, weights="best")
