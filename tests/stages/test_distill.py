"""Stage distill: same bytes from nothing, after kills and from checkpoints; clear refusals."""

import functools
import logging
import math
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dmd import methods
from dmd.config.methods.dmd import Dmd
from dmd.config.training import Distill
from dmd.data import manifest as manifests
from dmd.methods.base import Facts
from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES, MEAN, SAME_NOISE, SHARPNESS
from dmd.models import loading
from dmd.provenance import memory_limit, record, tensor_files
from dmd.stages import teacher
from dmd.train import networks
from dmd.train.log_columns import UpdateLog
from dmd.train.loop import TrainingLoop
from tests.trainings import NAMES, changed, checkpoints, command, digests, distil, train

UPDATES = 16
MEASURED = {CONTRAST, DIVERSITY, FEATURES, MEAN, SAME_NOISE, SHARPNESS}  # of grey images


def other_seed(numbers: dict, seed: int) -> dict:
    """A teacher of another seed."""
    return numbers | {"training": numbers["training"] | {"seed": seed}}


@pytest.fixture
def run(teacher_file, manifest_file, distill_section, caplog):
    """Distils into a folder, with some inputs or keys changed."""
    caplog.set_level(logging.INFO, logger="dmd")

    def distilled(folder: Path, files: dict = {}, **keys) -> Path:  # noqa: B006
        given = {"teacher": teacher_file, "manifest": manifest_file, **files}
        return distil(folder, changed(distill_section, **keys), **given)

    return distilled


@pytest.fixture
def stopped(run):
    """Stops a run after one update, as a crash would: the picture of that update cannot be written."""

    def stop(folder: Path, update: int, **keys) -> Path:
        obstacle = folder / "grids" / f"{update:08d}.png"
        obstacle.mkdir(parents=True)
        with pytest.raises(OSError):
            run(folder, **keys, grid_every=1)
        shutil.rmtree(folder / "grids")
        return folder

    return stop


def test_generator_and_log_from_nothing_have_the_same_bytes_again(run, distilled_folder, tmp_path):
    torch.rand(3)  # the global generator stands elsewhere
    assert digests(run(tmp_path, grid_every=1)) == digests(distilled_folder)
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".json"))
    assert left == ["generator.safetensors", "grids", "log.parquet"]  # no checkpoint, no lock
    assert len(list((tmp_path / "grids").iterdir())) == UPDATES


def test_a_new_head_is_drawn_from_the_seed(teacher_file, distill_section):
    file = loading.denoiser_file(teacher_file)
    facts = Facts(tuple(file.facts["shape"]), 10, file.facts["sigma_data"], network=file.facts["network"])
    heads = []
    for seed in (0, 0, 1):
        torch.rand(3)  # the global generator stands elsewhere
        method = {"name": "gan", "phases": [{"updates": 2}]}
        training = Distill.model_validate(distill_section | {"method": method, "seed": seed})
        new = functools.partial(methods.load("gan").new_network, training.method, facts=facts)
        modules = networks.load(training, file, file, device=torch.device("cpu"), new=new)
        heads.append(torch.cat([each.flatten() for each in modules["head"].parameters()]))
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_generator_says_what_it_is_and_holds_both_weights(distilled_folder, teacher_file):
    _, facts = loading.load_denoiser(teacher_file)
    averaged, metadata = loading.load_denoiser(distilled_folder / NAMES[0])
    raw, _ = loading.load_denoiser(distilled_folder / NAMES[0], weights="raw")
    for key in ("network", "shape", "num_classes", "sigma_data"):
        assert metadata[key] == facts[key]
    assert metadata["sigma"] == 80.0 and metadata["kind"] == "generator"
    assert metadata["calls"] == {"sigmas": [80.0], "between": "noise", "map": "denoiser", "sigma_min": 0.0}
    given = torch.randn(2, 1, 8, 8) * 80, torch.full((2,), 80.0), torch.tensor([0, 1])
    assert not torch.equal(averaged(*given), raw(*given))


def test_log_has_a_row_per_update_with_what_its_phase_knows(distilled_folder):
    rows = manifests.read_table(distilled_folder / NAMES[1])[0].to_pylist()
    assert [row["update"] for row in rows] == list(range(UPDATES))
    assert [row["phase"] for row in rows] == [0] * 4 + [1] * 3 + [2] * 9
    fake, student = {"loss/fake", "gradient_norm/fake"}, {"loss/regression", "gradient_norm/student"}
    student |= {"generated/mean", "generated/std"}
    matching = {"loss/matching", "matching/factor", "matching/nonfinite"}
    known = [student, fake, student | fake | matching]
    for row in rows:
        finite = {name for name, value in row.items() if math.isfinite(value) and not name.startswith("matching/gap")}
        measured = MEASURED if row["update"] % 4 == 3 else set()  # every 4 updates
        assert finite == known[row["phase"]] | {"update", "phase"} | measured
    gaps = [row[f"matching/gap{number}"] for row in rows for number in range(10)]
    assert sum(map(math.isfinite, gaps)) > 9 and all(not gap < 0 for gap in gaps)


def test_log_every_keeps_every_nth_row_and_those_with_measurements(run, distill_section, tmp_path):
    keys = {"log_every": 3, "phases": distill_section["method"]["phases"][:1], "monitor": {"every": 2}}
    assert manifests.read_table(run(tmp_path, **keys) / NAMES[1])[0]["update"].to_pylist() == [0, 1, 3]


def test_the_monitor_changes_no_trained_weight_and_its_best_ones_are_those_of_its_lowest_distance(
    run, distilled_folder, tmp_path
):
    without = tensor_files.load(run(tmp_path / "without", monitor=None, grid_every=1000) / NAMES[0])[0]
    monitored, facts = tensor_files.load(distilled_folder / NAMES[0])
    assert {name.partition(".")[0] for name in monitored} == {"raw", "ema", "best"}
    assert without.keys() == {name for name in monitored if not name.startswith("best.")}
    assert all(torch.equal(value, monitored[name]) for name, value in without.items())
    rows = manifests.read_table(distilled_folder / NAMES[1])[0].to_pylist()
    value, update = min((row[FEATURES], row["update"] + 1) for row in rows if math.isfinite(row[FEATURES]))
    assert facts["best"] == {"update": update, "value": value}
    best, _ = loading.load_denoiser(distilled_folder / NAMES[0], weights="best")
    averaged, _ = loading.load_denoiser(distilled_folder / NAMES[0])
    same = all(map(torch.equal, best.parameters(), averaged.parameters()))
    assert same == (update == UPDATES)


def test_log_names_phases_by_their_index_in_the_config(run, tmp_path):
    table, _ = manifests.read_table(run(tmp_path, regression_weight=0.0, monitor=None, grid_every=1000) / NAMES[1])
    assert table["phase"].to_pylist() == [1] * 3 + [2] * 9  # phase 0 has no loss left


def test_generator_learns_its_pairs(run, distill_section, tmp_path):
    phase = distill_section["method"]["phases"][0] | {"updates": 70, "learning_rate_scale": 5.0}
    keys = {"monitor": None, "checkpoint_every": 1000, "grid_every": 1000}
    run(tmp_path, phases=[phase], regression_batch_size=12, **keys)
    losses = manifests.read_table(tmp_path / NAMES[1])[0]["loss/regression"].to_pylist()
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_a_seed_changes_the_generator(run, distilled_folder, tmp_path):
    run(tmp_path, seed=1, monitor=None, grid_every=1000, checkpoint_every=1000)
    one, other = (tensor_files.load(folder / NAMES[0])[0] for folder in (tmp_path, distilled_folder))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_start_initialises_the_generator(run, teacher_numbers, tmp_path):
    start = train(tmp_path / "start" / "denoiser.safetensors", other_seed(teacher_numbers, 4))
    still = {"learning_rate": 1e-60}  # zero in float32
    run(tmp_path / "out", {"start": start}, student=still, monitor=None, grid_every=1000)
    made, begun = (tensor_files.load(path)[0] for path in (tmp_path / "out" / NAMES[0], start))
    names = [name for name in begun if name.startswith("ema.")]
    assert names and all(torch.equal(made[f"raw.{name[4:]}"], begun[name]) for name in names)


def test_a_run_with_shared_noise_continues_exactly(run, stopped, distill_section, tmp_path):
    numbers = {"shared_noise": True, "phases": [distill_section["method"]["phases"][2] | {"updates": 6}]}
    whole = digests(run(tmp_path / "whole", **numbers))
    stopped(tmp_path / "stopped", 5, **numbers)
    assert digests(run(tmp_path / "stopped", **numbers)) == whole


def test_a_run_killed_at_random_updates_has_the_same_bytes(
    run, teacher_file, manifest_file, distill_section, distilled_folder, tmp_path
):
    """kill -9 three times, each time as soon as the picture of a random update is there."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the kills: {seed}")
    line = command(tmp_path, changed(distill_section, grid_every=1), teacher=teacher_file, manifest=manifest_file)
    for update in sorted(random.Random(seed).sample(range(1, UPDATES), 3)):
        shutil.rmtree(tmp_path / "grids", ignore_errors=True)
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while process.poll() is None and not (tmp_path / "grids" / f"{update:08d}.png").exists():
            time.sleep(0.001)
        process.kill()
        print(f"killed at update {update}: exit code {process.wait()}, checkpoints {checkpoints(tmp_path)}")
    assert digests(run(tmp_path)) == digests(distilled_folder)
    assert checkpoints(tmp_path) == [] and not list(tmp_path.rglob(".tmp*"))


def test_a_checkpoint_of_another_spec_is_ignored_and_does_not_hide_newer_ones(
    run, stopped, distilled_folder, tmp_path, caplog
):
    stopped(tmp_path, 16, seed=5)
    assert checkpoints(tmp_path) == [12, 15]
    stopped(tmp_path, 8)
    assert "belongs to another spec" in caplog.text and "continuing" not in caplog.text
    assert checkpoints(tmp_path) == [3, 6]
    assert digests(run(tmp_path)) == digests(distilled_folder)
    assert "continuing at update 6" in caplog.text


def test_a_checkpoint_of_another_version_of_the_method_is_ignored(run, stopped, tmp_path, caplog, monkeypatch):
    stopped(tmp_path, 16)
    monkeypatch.setattr(Dmd, "version", 2)
    run(tmp_path)
    assert "belongs to another spec" in caplog.text and "continuing" not in caplog.text


@pytest.mark.parametrize("damage", ["truncated, no record", "flipped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    run, stopped, distilled_folder, tmp_path, caplog, damage
):
    stopped(tmp_path, 16)
    newest = tmp_path / "checkpoints" / "00000015.safetensors"
    content = newest.read_bytes()
    if damage == "flipped":
        newest.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        newest.write_bytes(content[: len(content) // 2])
        record.sidecar(newest).unlink()
    assert digests(run(tmp_path)) == digests(distilled_folder)
    assert "ignoring checkpoint 00000015.safetensors" in caplog.text and "continuing at update 12" in caplog.text


def test_a_full_disk_keeps_the_checkpoints(run, distilled_folder, tmp_path):
    (tmp_path / f".tmp-{NAMES[1]}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"no space left while writing {tmp_path / NAMES[1]}"):
        run(tmp_path)
    assert checkpoints(tmp_path) == [12, 15] and not (tmp_path / NAMES[0]).exists()
    assert digests(run(tmp_path)) == digests(distilled_folder)


def test_an_update_near_a_limit_of_memory_is_neither_kept_nor_shared(run, distilled_folder, tmp_path, monkeypatch):
    """Where several processes train, the others still wait for this one, so that none of them writes."""
    shared, share = [], TrainingLoop._asked_to_stop
    with monkeypatch.context() as changed:
        changed.setattr(TrainingLoop, "_asked_to_stop", lambda loop: shared.append(loop) or share(loop))
        changed.setattr(memory_limit, "tight", lambda: len(shared) >= 5)
        with pytest.raises(MemoryError, match="came within 128 MiB of its limit"):
            run(tmp_path)
    assert len(shared) == 5 and checkpoints(tmp_path) == [3]
    assert digests(run(tmp_path)) == digests(distilled_folder)


def test_numbers_that_are_not_finite_stop_with_the_update_and_the_last_good_checkpoint(run, distill_section, tmp_path):
    phases = distill_section["method"]["phases"]
    phases[2] |= {"learning_rate_scale": 1e30}
    with pytest.raises(ValueError, match=r"not finite at update [78]; last good checkpoint \S*00000006.safetensors"):
        run(tmp_path, phases=phases, weighting="sigma3/alpha")
    assert not any((tmp_path / name).exists() for name in NAMES) and checkpoints(tmp_path)[-1] == 6
    advice = "lower distill.optimisers.student.learning_rate"
    with pytest.raises(ValueError, match=rf"not finite at update \d; no checkpoint was written yet: {advice}"):
        run(tmp_path / "other", student={"learning_rate": 1e30}, checkpoint_every=1000)


def test_pairs_of_another_sigma_or_shape_are_refused(run, manifest_file, tmp_path):
    with pytest.raises(ValueError, match="solved from sigma 80.0, but distill.method.sigma is 79.5"):
        run(tmp_path, sigma=79.5)
    table, metadata = manifests.read_table(manifest_file)
    metadata["facts"]["shape"] = [3, 8, 8]
    manifests.write(tmp_path / "manifest.parquet", table, metadata)
    with pytest.raises(ValueError, match=r"images \[1, 8, 8\].*holds \[3, 8, 8\]: they must be equal"):
        run(tmp_path, {"manifest": tmp_path / "manifest.parquet"})
    assert not (tmp_path / NAMES[0]).exists()


def test_an_exact_teacher_needs_a_network_to_start_from(run, tmp_path):
    mixture = {"kind": "gaussian-mixture", "means": [[0.0, 0.0]], "stds": [1.0], "weights": [1.0]}
    teacher.run(output=tmp_path / "t", table=tmp_path / "l", kind="gaussian-mixture", dataset=mixture)
    with pytest.raises(ValueError, match="holds no network: set distill.start"):
        run(tmp_path, {"teacher": tmp_path / "t", "manifest": None}, regression_weight=0.0)


def test_pairs_are_needed_where_a_phase_regresses_and_nowhere_else(run, distill_section, tmp_path):
    with pytest.raises(ValueError, match="method dmd reads pairs: give --manifest"):
        run(tmp_path / "none", {"manifest": None})
    keys = {"regression_weight": 0.0, "phases": distill_section["method"]["phases"][2:]}
    with_pairs, without = run(tmp_path / "with", **keys), run(tmp_path / "without", {"manifest": None}, **keys)
    one, other = (tensor_files.load(folder / NAMES[0])[0] for folder in (with_pairs, without))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_named(run, manifest_file, tmp_path, damage):
    shutil.copytree(manifest_file.parent, tmp_path / "pairs")
    tar = tmp_path / "pairs" / "00001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-512] if damage == "truncated" else content[:700] + b"\1" + content[701:])
    if damage == "missing":
        tar.unlink()
    with pytest.raises(ValueError, match="00001.tar"):
        run(tmp_path / "out", {"manifest": tmp_path / "pairs" / "manifest.parquet"})
    assert not (tmp_path / "out" / NAMES[0]).exists()


def test_lpips_needs_its_weights_and_their_digest(run, tmp_path):
    distance = {"kind": "lpips", "file": "vgg16.pth", "sha256": "0" * 64, "pooling": "average", "size": 64}
    with pytest.raises(ValueError, match="give --lpips"):
        run(tmp_path, regression_distance=distance)
    (tmp_path / "vgg16.pth").write_bytes(b"other weights")
    with pytest.raises(
        ValueError, match=f"vgg16.pth has sha256 .* distill.method.regression_distance.sha256 pins {'0' * 64}"
    ):
        run(tmp_path, {"lpips": tmp_path / "vgg16.pth"}, regression_distance=distance)


def test_a_number_of_processes_that_does_not_run_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="processes: 3 wanted, 1 running; start .* --nproc-per-node 3"):
        run(tmp_path, processes=3)


def test_passes_in_bfloat16_and_parts_learn_nearly_the_same_and_continue_exactly(
    run, stopped, distilled_folder, teacher_file, tmp_path
):
    """All that works without a GPU at once; parameters and moving average stay float32."""
    compute = {"dtype": "bfloat16", "tf32": True, "channels_last": True, "gradient_checkpointing": True}
    compute |= {"micro_batch_size": 2}
    keys = {"compute": compute}
    stopped(tmp_path, 8, **keys)
    run(tmp_path, **keys)
    run(tmp_path / "whole", **keys)
    assert torch.backends.cudnn.allow_tf32
    assert digests(tmp_path) == digests(tmp_path / "whole") != digests(distilled_folder)
    mine, exact, begun = (
        tensor_files.load(path)[0] for path in (tmp_path / NAMES[0], distilled_folder / NAMES[0], teacher_file)
    )
    assert {value.dtype for value in mine.values()} == {torch.float32} and mine.keys() == exact.keys()
    names = [name for name in exact if name.startswith("ema.")]
    error, moved = (torch.cat([(one[name] - exact[name]).flatten() for name in names]).norm() for one in (mine, begun))
    assert 0 < error < 0.25 * moved


@pytest.mark.parametrize("shared_noise", [False, True])
def test_logged_fake_loss_is_the_mean_over_all_fake_updates(run, distill_section, tmp_path, monkeypatch, shared_noise):
    """Of the last three losses: the updates that are watched before the training have others."""
    found, scalar = [], UpdateLog.scalar

    def seen(log: UpdateLog, name: str, value: torch.Tensor, rows: int) -> None:
        found.extend([float(value.detach())] * (name == "loss/fake"))
        scalar(log, name, value, rows)

    monkeypatch.setattr(UpdateLog, "scalar", seen)
    phase = distill_section["method"]["phases"][-1] | {"updates": 1, "fake_updates": 3}
    table, _ = manifests.read_table(run(tmp_path, phases=[phase], shared_noise=shared_noise) / NAMES[1])
    assert len(set(found[-3:])) == 3 and table["loss/fake"][0].as_py() == pytest.approx(sum(found[-3:]) / 3)


def test_compiled_networks_train_the_same_and_continue_exactly(
    run, stopped, distill_section, tmp_path, monkeypatch, caplog
):
    """Traced like any compiled network; generating its code would take minutes."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: compiled(module, backend="eager", **given))
    torch._dynamo.reset()
    phases = [distill_section["method"]["phases"][-1] | {"updates": 4, "fake_updates": 1}]
    numbers = {"compute": {"compile": True}, "phases": phases, "checkpoint_every": 3}
    whole = run(tmp_path / "whole", **numbers)
    assert digests(run(stopped(tmp_path / "stopped", 4, **numbers), **numbers)) == digests(whole)
    assert any("continuing at update" in line for line in caplog.messages)
    mine, plain = (
        tensor_files.load(folder / NAMES[0])[0] for folder in (whole, run(tmp_path / "plain", phases=phases))
    )
    for name, value in plain.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=2e-4)
