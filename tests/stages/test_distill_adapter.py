"""Stage distill with adapters and moments of 8 bits: what is trained, what is written, and the same bytes again."""

import shutil

import pytest
import torch

from dmd.models import loading
from dmd.provenance import tensor_files
from tests.conftest import DISTILL
from tests.trainings import NAMES, changed, digests, distil

ADAPTER = {"rank": 3, "alpha": 6.0, "targets": None}


@pytest.fixture(scope="module")
def run(teacher_file, manifest_file):
    """Distils into a folder with adapters, with some inputs or keys changed."""

    def distilled(folder, files={}, **keys):  # noqa: B006
        section = changed(DISTILL, **{"grid_every": 100, "adapter": ADAPTER, **keys})
        distil(folder, section, **{"teacher": teacher_file, "manifest": manifest_file, **files})
        return tensor_files.load(folder / NAMES[0])

    return distilled


@pytest.fixture(scope="module")
def adapted(run, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Tensors of a generator with adapters; not to be changed."""
    return run(tmp_path_factory.mktemp("adapted"))[0]


@pytest.fixture
def stopped(run):
    """Stops a run after one update, as a crash would: the picture of that update cannot be written."""

    def stop(folder, update, **keys):
        obstacle = folder / "grids" / f"{update:08d}.png"
        obstacle.mkdir(parents=True)
        with pytest.raises(OSError):
            run(folder, **keys, grid_every=1)
        shutil.rmtree(folder / "grids")

    return stop


def test_a_generator_without_updates_is_the_teacher_bit_for_bit(run, teacher_file, tmp_path):
    still = {"learning_rate": 1e-60}  # zero in float32
    made, metadata = run(tmp_path, student=still, phases=[{"updates": 4, "fake_updates": 1}])
    begun = {name: value for name, value in tensor_files.load(teacher_file)[0].items() if name.startswith("ema.")}
    for name, value in begun.items():
        assert torch.equal(made[name], value) and torch.equal(made[f"raw.{name[4:]}"], value)
    assert {name.split(".")[0] for name in made} == {"ema", "raw", "lora", "best", "lora_best"}
    assert metadata["adapter"] == ADAPTER
    noise, label = torch.randn(2, 1, 8, 8) * 80.0, torch.tensor([0, 1])
    images = [
        loading.load_denoiser(path)[0](noise, torch.full((2,), 80.0), label)
        for path in (tmp_path / NAMES[0], teacher_file)
    ]
    assert torch.equal(*images)


def test_best_weights_are_those_of_a_training_that_ends_there(run, tmp_path):
    """The adapter gets its average for a measurement, and its own values back."""
    phases = [{"updates": 8, "fake_updates": 1}]
    keys = {"schedule": {"decay": "constant"}, "ema_decay": 0.5, "monitor": {"every": 2}}
    made, metadata = run(tmp_path / "whole", phases=phases, **keys)
    plain, _ = run(tmp_path / "plain", phases=phases, schedule=keys["schedule"], ema_decay=0.5, monitor=None)
    assert all(torch.equal(value, made[name]) for name, value in plain.items())
    update = metadata["best"]["update"]
    shorter, _ = run(tmp_path / "short", phases=[{**phases[0], "updates": update}], **{**keys, "monitor": None})
    for kept, name in (("best.", "ema."), ("lora_best.", "lora.")):
        found = {key.removeprefix(name): value for key, value in shorter.items() if key.startswith(name)}
        assert found and all(torch.equal(made[f"{kept}{key}"], value) for key, value in found.items())


def test_the_generator_file_is_the_teacher_and_its_adapter(adapted, teacher_file):
    made, begun, moved = adapted, tensor_files.load(teacher_file)[0], 0.0
    layers = sorted({name[5:].rpartition(".lora_")[0] for name in made if name.startswith("lora.")})
    for layer in layers:
        down, up = (made[f"lora.{layer}.lora_{part}.weight"].flatten(1).double() for part in "AB")
        weight = begun[f"ema.{layer}.weight"]
        expected = weight.double() + ADAPTER["alpha"] / ADAPTER["rank"] * (up @ down).view(weight.shape)
        torch.testing.assert_close(made[f"ema.{layer}.weight"].double(), expected, rtol=0, atol=1e-6)
        moved = max(moved, float((made[f"ema.{layer}.weight"] - weight).abs().max()))
    assert moved > 1e-3 and not torch.equal(made[f"raw.{layer}.weight"], made[f"ema.{layer}.weight"])
    untouched = {name for name in begun if name.startswith("ema.")} - {f"ema.{layer}.weight" for layer in layers}
    assert untouched and all(torch.equal(made[name], begun[name]) for name in untouched)


@pytest.mark.parametrize(("kind", "monitor"), [("fused", None), ("8bit", {})], ids=["fused", "8bit"])
def test_a_run_that_continues_has_the_same_bytes_and_keeps_adapters_alone(run, stopped, tmp_path, kind, monitor):
    numbers = {"student": {"kind": kind}, "adapter": ADAPTER | {"rank": 64}, "monitor": monitor}
    run(tmp_path / "whole", **numbers)
    stopped(tmp_path / "stopped", 14, **numbers)
    (*_, newest) = sorted((tmp_path / "stopped" / "checkpoints").glob("*.safetensors"))
    kept, _ = tensor_files.load(newest)
    networks = [name for name in kept if name.startswith(("state.network.", "state.average.module."))]
    assert len({name.split(".")[2] for name in networks}) == 3 and all(
        ".lora_A." in name or ".lora_B." in name for name in networks
    )
    assert any(name.endswith(".codes") for name in kept) == (kind == "8bit")
    run(tmp_path / "stopped", **numbers)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_whole_networks_with_moments_of_8_bits_continue_exactly_and_learn_nearly_the_same(
    run, stopped, distilled_folder, teacher_file, tmp_path
):
    numbers = {"student": {"kind": "8bit"}, "adapter": None, "monitor": None}
    made, _ = run(tmp_path / "whole", **numbers)
    stopped(tmp_path / "stopped", 8, **numbers)
    run(tmp_path / "stopped", **numbers)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    exact, begun = tensor_files.load(distilled_folder / NAMES[0])[0], tensor_files.load(teacher_file)[0]
    names = [name for name in exact if name.startswith("ema.")]
    error, moved = (torch.cat([(one[name] - exact[name]).flatten() for name in names]).norm() for one in (made, begun))
    assert error < 0.1 * moved


def test_adapters_learn_the_same_in_parts_and_checkpointed(run, adapted, tmp_path):
    parts, _ = run(tmp_path, compute={"gradient_checkpointing": True, "micro_batch_size": 2})
    for name, value in adapted.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_compiled_networks_with_adapters_learn_the_same(run, distill_section, tmp_path, monkeypatch):
    """They are traced as any compiled network; generating their code would take minutes."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: compiled(module, backend="eager", **given))
    torch._dynamo.reset()
    numbers = {"phases": [distill_section["method"]["phases"][-1] | {"updates": 2, "fake_updates": 1}]}
    exact, _ = run(tmp_path / "exact", **numbers)
    traced, _ = run(tmp_path / "traced", compute={"compile": True}, **numbers)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for name, value in exact.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-3, atol=2e-4)


def test_adapters_of_another_start_are_refused(run, teacher_file, tmp_path):
    start = shutil.copytree(teacher_file.parent, tmp_path / "start") / teacher_file.name
    with pytest.raises(ValueError, match="the network that carries the adapters is the teacher"):
        run(tmp_path, {"start": start})
