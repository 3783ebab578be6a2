"""What one update takes: passes counted by hand, memory against bytes that real updates keep alive, nothing changed."""

import gc
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dmd import methods
from dmd.config.methods.contrastive import Contrastive
from dmd.config.methods.denoising import Denoising
from dmd.config.methods.dmd import Dmd
from dmd.config.methods.ect import Ect
from dmd.config.training import Distill
from dmd.jobs import gpu_memory
from dmd.methods.base import Facts, Method, Part, Step
from dmd.methods.parts.distances import l2_distance
from dmd.models.adapters import add_adapters, with_network
from dmd.models.compute import prepare
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.lora import size
from dmd.models.networks import build
from dmd.models.tensor_bytes import LinearBytes, Peak, weight_bytes
from dmd.train import memory
from dmd.train.measured_update import MeasuredPart, MeasuredStep, measured_steps, memory_plan, total_passes
from dmd.train.memory import distance_bytes
from dmd.train.parallel import BUCKET, BatchSplit
from tests.trainings import WHOLE, FixedRows, Updates, changed, weights

UNET = {"kind": "ddpmpp", "resolution": 16, "channels": 3, "width": 32, "multipliers": [1, 2], "blocks": 1}
UNET |= {"attention": [8], "num_classes": 4}
MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}
ADAPTER = {"rank": 4, "alpha": None, "targets": None}
NUM = 6  # rows
HALVES = BatchSplit(micro_batch_size=NUM // 2)
ROLES = ("teacher", "student", "fake")


def denoiser(architecture: dict, seed: int, **compute) -> Denoiser:
    """Random weights everywhere, the layers that start at zero too."""
    found = Denoiser(build(architecture), sigma_data=0.5)
    generator = torch.Generator().manual_seed(seed)
    for parameter in found.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return prepare(found, compute)


def modules(architecture: dict, **compute) -> dict[str, nn.Module]:
    return {role: denoiser(architecture, seed, **compute) for seed, role in enumerate(ROLES)}


def adapted(architecture: dict) -> dict[str, nn.Module]:
    """One network that carries the adapters of the two others."""
    carrier = denoiser(architecture, 0)
    views = add_adapters(carrier.network, ADAPTER, ("student", "fake"), seed=0)
    return {role: with_network(carrier, view) for role, view in zip(ROLES, views, strict=True)}


def streams(architecture: dict, num: int = NUM) -> dict[str, FixedRows]:
    """Given rows of noise and pairs, `num` of each."""
    side = architecture["resolution"]
    image = torch.randn(num, architecture["channels"], side, side, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(num, dtype=torch.int64) if architecture["num_classes"] else torch.full((num,), -1)
    rows = {"noise": image, "label": label}
    return {"noise": FixedRows(rows), "pairs": FixedRows(rows | {"image": image.flip(0)})}


def updates(
    section: dict, architecture: dict = MLP, *, made: dict | None = None, split: BatchSplit = WHOLE, **keys
) -> Updates:
    """A distillation of one phase, on given rows."""
    given = {"matching_batch_size": NUM, "regression_batch_size": NUM, "phases": [{"updates": 10}]} | keys
    side = architecture["resolution"]
    facts = Facts((architecture["channels"], side, side), architecture["num_classes"], 0.5)
    return Updates(changed(section, **given), made or modules(architecture), facts, streams(architecture), split)


def watched(found: Updates, architecture: dict = MLP) -> list[MeasuredStep]:
    return measured_steps(found.trainer, streams(architecture))


def passes(section: dict, **keys) -> dict[str, dict[str, dict[str, int]]]:
    """By step, part and role; steps of one name add up."""
    found: dict = {}
    for each in watched(updates(section, **keys)):
        parts = found.setdefault(each.step.name, {})
        parts |= {name: dict(part.passes) for name, part in each.parts.items()}
    return found


MATCHED = {"student": 3, "teacher": 1, "fake": 1}
REGRESSED = {"student": 3}
LEARNT = {"fake": 3}


def test_passes_of_an_update_are_those_of_the_algorithm(distill_section):
    found = passes(distill_section)
    assert found == {"student": {"noise": MATCHED, "pairs": REGRESSED}, "fake": {"fake_noise": LEARNT}}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"shared_noise": True},  # the pass of the fake score is its update, too
            {"student": {"noise": {"student": 3, "teacher": 1, "fake": 3}, "pairs": REGRESSED}},
        ),
        (
            {"match_pairs": True},
            {
                "student": {"noise": MATCHED, "pairs": MATCHED},
                "fake": {"fake_noise": LEARNT, "fake_pairs": LEARNT},
            },
        ),
        (
            {"phases": [{"updates": 10, "fake_updates": 2}]},  # the second on images of its own
            {
                "student": {"noise": MATCHED, "pairs": REGRESSED},
                "fake": {"fake_noise": LEARNT, "noise1": {"student": 1, "fake": 3}},
            },
        ),
        ({"fake_score": False}, {"student": {"noise": {"student": 3, "teacher": 1}, "pairs": REGRESSED}}),
        ({"matching_weight": 0.0}, {"student": {"pairs": REGRESSED}}),
        ({"phases": [{"updates": 10, "train": "fake"}]}, {"fake": {"noise": {"student": 1, "fake": 3}}}),
    ],
)
def test_passes_follow_the_switches(distill_section, keys, expected):
    assert passes(distill_section, **keys) == expected


def test_guidance_asks_the_teacher_twice(distill_section):
    made = modules(MLP)
    made["teacher"] = with_guidance(made["teacher"], torch.tensor(-1), 3.0)
    assert passes(distill_section, guidance=3.0, made=made)["student"]["noise"] == {**MATCHED, "teacher": 2}


def test_passes_of_adapters_are_those_of_whole_networks(distill_section):
    found = passes(distill_section, made=adapted(MLP))
    assert found == {"student": {"noise": MATCHED, "pairs": REGRESSED}, "fake": {"fake_noise": LEARNT}}


def test_total_passes_are_those_of_all_phases(distill_section):
    phases = [{"updates": 7, "train": "fake"}, {"updates": 100, "matching_batch_size": 4}]
    totals = total_passes(watched(updates(distill_section, phases=phases)))
    assert totals == {
        "student": 7 * NUM + 100 * (3 * 4 + 3 * NUM),
        "teacher": 100 * 4,
        "fake": 7 * 3 * NUM + 100 * (1 + 3) * 4,
    }


@dataclass
class Through(Method[Dmd]):
    """A loss whose gradient goes through the frozen teacher, as that of score identity distillation does."""

    @classmethod
    def steps(cls, config, clock):
        return (Step("student", ("student",), (Part("noise", NUM, "noise"),)),)

    def loss(self, step, part, rows, clock, log):
        sigma = torch.ones(len(rows["noise"]))
        image = self.networks["student"](rows["noise"], sigma, rows["label"])
        return self.networks["teacher"](image, sigma, rows["label"]).square().mean()


def test_a_gradient_that_only_goes_through_a_network_counts_two(distill_section, monkeypatch):
    monkeypatch.setattr(methods, "load", lambda name: Through)
    assert passes(distill_section) == {"student": {"noise": {"student": 3, "teacher": 2}}}


COMPUTES = [{}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}]
COMPUTES.append({"dtype": "bfloat16", "gradient_checkpointing": True})


def real_peak(found: Updates) -> int:
    """Most bytes alive in a whole update, without weights, moments and what is read."""
    networks = found.trainer.networks
    for role, optimiser in networks.optimisers.items():  # makes moments
        for parameter in networks.weights(role).parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.update()
    networks.average_student()
    steps = found.steps(1)
    gc.collect()
    with Peak() as peak:
        found.trainer.update(found.clock(1), steps)
    return peak.most


def foretold_peak(steps: list[MeasuredStep], found: Updates) -> int:
    """Of activations of micro-batches, and gradients of the same step that are there from the second one on."""
    trained = {role: weight_bytes(found.trainer.networks.weights(role)) for role in ("student", "fake")}
    return max(
        part.activations.of(found.trainer.split.largest(part.size)) + sum(trained[role] for role in each.step.trains)
        for each in steps
        for part in each.parts.values()
    )


@pytest.mark.parametrize("compute", COMPUTES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_memory_of_a_part_is_what_a_real_update_of_more_rows_holds(distill_section, compute, shared):
    found = updates(distill_section, UNET, made=modules(UNET, **compute), split=HALVES, shared_noise=shared)
    foretold = foretold_peak(watched(found, UNET), found)
    assert real_peak(found) == pytest.approx(foretold, rel=0.06)


def test_memory_of_a_part_with_adapters_is_what_a_real_update_holds(distill_section):
    found = updates(distill_section, UNET, made=adapted(UNET), split=HALVES)
    foretold = foretold_peak(watched(found, UNET), found)
    assert real_peak(found) == pytest.approx(foretold, rel=0.06)


def test_what_saves_memory_saves_it(distill_section):
    def line(**compute) -> LinearBytes:
        steps = watched(updates(distill_section, UNET, made=modules(UNET, **compute)), UNET)
        return steps[0].parts["pairs"].activations

    exact, half = line(), line(dtype="bfloat16")
    assert 0.45 < half.per_row / exact.per_row < 0.6
    assert line(gradient_checkpointing=True).per_row < 0.5 * exact.per_row
    assert half.fixed > exact.fixed


def lines(**parts: tuple[int, LinearBytes, bool]) -> MeasuredStep:
    """A step of the student whose parts have a size, memory, and perhaps a distance."""
    watched = {name: MeasuredPart(size, line, distance, {}) for name, (size, line, distance) in parts.items()}
    return MeasuredStep(Step("student", ("student",), tuple(Part(name, 1) for name in parts)), 1, watched)


def plan(found: Updates, steps: list[MeasuredStep], *, distance: int = 0) -> dict[str, int]:
    return memory_plan(found.trainer, steps, lambda num: distance * num)


@pytest.fixture
def whole(distill_section) -> Updates:
    return updates(distill_section, UNET)


def test_plan_names_every_network_and_the_fullest_part(whole):
    size = weight_bytes(whole["student"])
    steps = [lines(noise=(30, LinearBytes(10, 1), False), pairs=(24, LinearBytes(10, 1), True))]
    found = plan(whole, steps)
    assert {found[f"weights of {role}"] for role in ROLES} == {size} and found["moving average"] == size
    assert found["moments"] == 2 * 2 * 4 * weights(whole["student"]).numel() and found["gradients"] == size
    assert found["activations of 30 rows of noise, step student"] == 301 and len(found) == 7
    found = plan(whole, steps, distance=5)
    assert found["activations of 24 rows of pairs, step student and their distance"] == 241 + 5 * 24


def test_plan_counts_the_rows_of_a_process_and_of_a_micro_batch(whole):
    steps = [lines(noise=(30, LinearBytes(10, 1), False))]
    whole.trainer.split = BatchSplit(0, 4)
    found = plan(whole, steps)
    assert found["exchange of gradients"] == 4 * BUCKET
    assert found["activations of 8 rows of noise, step student"] == 81
    whole.trainer.split = BatchSplit(0, 4, micro_batch_size=3)
    assert plan(whole, steps)["activations of 3 rows of noise, step student"] == 31


def test_gradients_are_those_of_the_step_that_has_most(distill_section):
    for shared, factor in ((False, 1), (True, 2)):
        found = updates(distill_section, UNET, shared_noise=shared)
        assert plan(found, watched(found, UNET))["gradients"] == factor * weight_bytes(found["student"])


def test_moments_of_8_bits_are_planned_tensor_by_tensor(distill_section):
    """Those of both networks as torchao makes them: small or odd tensors have moments in float32."""
    found = updates(distill_section, UNET, student={"kind": "8bit"})
    told = plan(found, [lines(noise=(1, LinearBytes(1, 1), False))])["moments"]
    found.update(0)
    made = [
        each for role in ("student", "fake") for each in found.trainer.networks.optimisers[role].adamw.state.values()
    ]
    moments = [state[name] for state in made for name in ("exp_avg", "exp_avg_sq")]
    coded = [moment for moment in moments if hasattr(moment, "codes")]
    plain = [moment for moment in moments if not hasattr(moment, "codes")]
    whole = sum(moment.codes.nbytes + moment.scale.nbytes + moment.qmap.nbytes for moment in coded)
    assert coded and plain and told == whole + sum(moment.nbytes for moment in plain)


def test_processes_that_share_parameters_divide_everything_but_passes(distill_section):
    found = updates(distill_section, UNET)
    steps = [lines(noise=(30, LinearBytes(10, 1), False))]
    alone = plan(found, steps)
    compute = found.trainer.training.compute.model_copy(update={"shard_parameters": True})
    found.trainer.training = found.trainer.training.model_copy(update={"compute": compute})
    found.trainer.split = BatchSplit(0, 2)
    told = plan(found, steps)
    kept = {name: size for name, size in alone.items() if "activations" not in name}
    assert {name: told[name] for name in kept} == {name: -(-size // 2) for name, size in kept.items()}
    assert "exchange of gradients" not in told and told["activations of 15 rows of noise, step student"] == 151


def test_adapters_count_alone_and_their_network_once(distill_section):
    found = updates(distill_section, UNET, made=adapted(UNET))
    told, bare = plan(found, watched(found, UNET)), denoiser(UNET, 0)
    trained = 4 * size(bare.network, ADAPTER).parameters
    assert told["weights of teacher"] == weight_bytes(bare)
    assert told["weights of student"] == told["weights of fake"] == told["moving average"] == trained
    assert told["moments"] == 4 * trained and told["gradients"] == trained


def test_distances_that_keep_nothing_take_nothing():
    assert distance_bytes(l2_distance, (3, 16, 16), 4) == 0


DROPPING = UNET | {"dropout": 0.5, "width": 16, "blocks": 1}


@pytest.mark.parametrize("first", [0, 1])
def test_watching_leaves_a_training_as_it_was(distill_section, first):
    """Weights, gradients, modes, phase, distances, and random numbers: what is watched learns the same bytes."""
    made = [
        updates(distill_section, DROPPING, phases=[{"updates": 2}, {"updates": 8, "fake_updates": 2}]) for _ in "ab"
    ]
    plain, seen = made
    for number in range(first):
        seen.update(number)
        plain.update(number)
    distances, state = seen.trainer.method.distances, torch.get_rng_state()
    before = {role: weights(seen[role]) for role in ROLES}
    modes = {role: (seen[role].training, [one.requires_grad for one in seen[role].parameters()]) for role in ROLES}
    watched(seen, DROPPING)
    assert torch.equal(torch.get_rng_state(), state) and seen.trainer.method.distances is distances
    assert all(torch.equal(weights(seen[role]), before[role]) for role in ROLES)
    assert all(one.grad is None for role in ROLES for one in seen[role].parameters())
    assert modes == {
        role: (seen[role].training, [one.requires_grad for one in seen[role].parameters()]) for role in ROLES
    }
    assert not any(module._forward_hooks for role in ROLES for module in seen[role].modules())
    rows = [[each.update(number) for number in range(first, 5)] for each in made]
    assert str(rows[0]) == str(rows[1])
    assert all(torch.equal(weights(plain[role]), weights(seen[role])) for role in ROLES)
    assert torch.equal(weights(plain.trainer.networks.average), weights(seen.trainer.networks.average))


def test_a_section_that_trains_one_network_needs_no_gradients_of_the_other(distill_section):
    found = updates(distill_section, UNET, matching_weight=0.0)
    steps = watched(found, UNET)
    assert [each.step.trains for each in steps] == [("student",)]


def test_an_update_that_does_not_fit_says_what_helps_and_what_is_kept(tmp_path):
    for names, kept in (((), "no checkpoint was written yet"), (("00000003", "00000006"), "00000006.safetensors: ")):
        for name in names:
            (tmp_path / f"{name}.safetensors").touch()
        with (
            pytest.raises(ValueError, match=rf"update 7: Tried 2 GiB.; .*{kept}.*take less"),
            memory.explain_out_of_memory(7, tmp_path, advice="take less"),
        ):
            raise torch.OutOfMemoryError("Tried 2 GiB.\nMore")


def test_advice_names_keys_of_the_section_that_trains():
    for section, method, expected in (
        ("distill", Dmd, "micro_batch_size gradient_checkpointing: dtype: adapter processes kind:"),
        ("distill", Ect, "micro_batch_size gradient_checkpointing: adapter processes kind:"),
        ("teacher.training", Denoising, "micro_batch_size gradient_checkpointing: dtype: processes kind:"),
        ("pipeline.text.training", Contrastive, "batch_size kind:"),
    ):
        ways = memory.training_advice(section, method.refuses).split(", or ")
        assert all(f" {section}." in f" {way}" for way in ways)
        found = [key for way in ways for key in way.split() if key.startswith(section)]
        assert " ".join(key.rpartition(".")[2] for key in found) == expected


def test_a_plan_that_does_not_fit_is_refused_with_advice(caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    gpu_memory.refuse(3 * gpu_memory.GIB, 3 * gpu_memory.GIB, "take less")
    gpu_memory.refuse(4 * gpu_memory.GIB, gpu_memory.GIB, "take less", exact=False)
    assert "warning: perhaps 4 GiB more of GPU memory are needed, 1 GiB are free: take less" in caplog.text
    with pytest.raises(ValueError, match="at least 3 GiB more of GPU memory are needed, 2.5 GiB are free: take less"):
        gpu_memory.refuse(3 * gpu_memory.GIB, int(2.5 * gpu_memory.GIB), "take less")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plan_of_compiled_networks_does_not_refuse(monkeypatch, distill_section, compiled):
    announced = []
    monkeypatch.setattr(gpu_memory, "announce", lambda *plan, **how: announced.append((plan[0], how)))
    found = updates(distill_section)
    found.trainer.training = Distill.model_validate(
        changed(distill_section, phases=[{"updates": 10}], compute={"compile": compiled})
    )
    memory.announce_training(found.trainer, streams(MLP), advice="take less")
    ((parts, how),) = announced
    assert how["exact"] is not compiled
    held = [size for name, size in parts.items() if name.startswith("weights") or name == "moving average"]
    assert how["allocated"] == sum(held) and len(held) == 4
