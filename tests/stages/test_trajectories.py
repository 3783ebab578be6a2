"""Pairs that keep states of their trajectories."""

from pathlib import Path

import pytest
import torch

from dmd.data import manifest as manifests
from dmd.data.pairs import PairReader
from dmd.models import loading
from dmd.sampling.blocks import trajectory_steps
from dmd.sampling.noise import sampling_sigmas
from dmd.stages import manifest, pairs


@pytest.fixture
def run(teacher_file, pairs_numbers, tmp_path):
    """Pairs, with some numbers changed, as their manifest."""

    def made(**changed) -> manifests.Manifest:
        block = tmp_path / "pairs" / "blocks" / "00000-00001.parquet"
        pairs.run(teacher=teacher_file, output=block, **pairs_numbers | changed)
        path = Path(tmp_path / "pairs" / "manifest.parquet")
        manifest.run(blocks=[block], output=path, num=12, shard_size=6)
        return manifests.read(path)

    return made


def test_states_of_euler_follow_each_other_and_end_in_the_image(run, teacher_file):
    solver = {"name": "euler", "steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    found = run(solver=solver, kept_states=4)
    noise, label, states = PairReader(found, seed=0).batch(0, 5, last="trajectory")
    _, _, image = PairReader(found, seed=0).batch(0, 5)
    sigmas = sampling_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert found.metadata["facts"]["trajectory_sigmas"] == sigmas[1:].tolist()
    assert states.shape == (5, 4, 1, 8, 8) and torch.equal(states[:, -1], image)
    teacher, _ = loading.load_denoiser(teacher_file)
    before = torch.cat([80.0 * noise[:, None], states[:, :-1]], 1)
    for step in range(4):
        sigma = torch.full((5,), float(sigmas[step]))
        x0 = teacher(before[:, step], sigma, label)
        after = x0 + float(sigmas[step + 1] / sigmas[step]) * (before[:, step] - x0)
        assert torch.allclose(after, states[:, step], atol=2e-4 * float(sigmas[step]).__ceil__())


def test_images_do_not_depend_on_what_is_kept(run, manifest_file):
    found = PairReader(run(kept_states=2), seed=0).batch(0, 12)
    plain = PairReader(manifests.read(manifest_file), seed=0).batch(0, 12)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_pairs_without_trajectories_say_so(manifest_file):
    with pytest.raises(ValueError, match="trajectory"):
        PairReader(manifests.read(manifest_file), seed=0).batch(0, 2, last="trajectory")


def test_kept_steps_are_evenly_spaced_and_end_with_the_last():
    solver = {"name": "heun", "steps": 18}
    assert (
        trajectory_steps(solver, 0) == []
        and trajectory_steps(solver, 1) == [18]
        and trajectory_steps(solver, 18) == [*range(1, 19)]
    )
    assert trajectory_steps(solver, 4) == [5, 9, 14, 18]


@pytest.mark.parametrize(
    ("solver", "num", "words"),
    [({"name": "heun", "steps": 3}, 4, "4 states, but the solver makes 3 steps"),
     ({"name": "ddim", "steps": 9}, 2, "solver ddim saves no states")],
)  # fmt: skip
def test_states_that_cannot_be_kept_are_refused(solver, num, words):
    with pytest.raises(ValueError, match=words):
        trajectory_steps(solver, num)
