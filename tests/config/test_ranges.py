"""Every number of the configuration has a range, and what could not be held in memory is refused by its key."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from dmd import config
from dmd.config.experiment import File
from tests.config.test_rule_table import Experiment, models

ROOT = Path(__file__).resolve().parents[2]
BASE = config.read_yaml(ROOT / "tests" / "config" / "base.yaml")["experiments"]["base"]


def numbers(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The annotations of all whole and real numbers in an annotation, each with all its limits."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from numbers(inner, (*metadata, *more))
    elif annotation in (int, float):
        yield Annotated[(annotation, *metadata)] if metadata else annotation
    elif get_origin(annotation) not in (dict, None) and not isinstance(annotation, str):
        several = get_origin(annotation) in (tuple, list)
        for inner in get_args(annotation):
            if not isinstance(inner, str | int) and inner is not Ellipsis:
                yield from numbers(inner, () if several else metadata)


FIELDS = {
    f"{model.__name__}.{name}": [
        *numbers(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
    ]
    for model in models(Experiment) | models(File)
    for name, field in model.model_fields.items()
}
FIELDS = {name: found for name, found in FIELDS.items() if found}


def test_the_numbers_were_found():
    assert len(FIELDS) > 120 and {"OdeSolver.rho", "Pairs.batch_size", "Reference.floor_draws"} <= FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_number_has_a_lower_and_an_upper_limit(name: str):
    for annotation in FIELDS[name]:
        number = TypeAdapter(annotation)
        largest = 1e31 if name.endswith(("learning_rate", "gradient_clip", "learning_rate_scale")) else 2**62
        for huge in (largest, -largest, 10**40, -(10**40)):
            with pytest.raises(ValidationError, match="(less|greater) than"):
                number.validate_python(huge)
        if number.json_schema()["type"] == "number":
            for value in (math.inf, -math.inf):
                with pytest.raises(ValidationError):
                    number.validate_python(value)


def refused(**sections: Any) -> str:
    changed: dict[str, Any] = {"base": copy.deepcopy(BASE), "child": {"extends": "base", **sections}}
    with pytest.raises(config.ConfigError) as caught:
        config.resolve({"experiments": changed})
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"pairs": {"solver": {"name": "heun", "rho": 1e-3}}},
            "pairs.solver.rho: 0.001 is less than",
        ),
        (
            {"pairs": {"batch_size": 2**62}},
            "pairs.batch_size: 4611686018427387904 is greater than the maximum of 100000",
        ),
        ({"reference": {"floor_draws": 2**40}}, "reference.floor_draws: 1099511627776 is greater than the maximum of"),
        ({"distill": {"seed": 2**32}}, "distill.seed: 4294967296 is greater than the maximum of 4294967295"),
        ({"pairs": {"num_pairs": 10**9, "shard_size": 1}}, "pairs.shard_size: 1 makes 1000000000 shards"),
        ({"sample": {"num_samples": 10**6, "repetitions": 2, "shard_size": 1}}, "sample.shard_size: 1 makes 2000000"),
        (
            {"sample": {"num_samples": 10**9, "repetitions": 1000, "shard_size": 10**6}},
            "exceed the largest seed, 4294967295; there are only 4294967296 for all images",
        ),
        ({"evaluate": {"neighbours": 8}}, "evaluate.neighbours: 8 must be below sample.num_samples 8"),
        ({"evaluate": {"kid_subset": 9}}, "evaluate.kid_subset: 9 is more than sample.num_samples 8"),
        ({"distill": {"seeds": list(range(101))}}, "is not a list of at most 100 distinct whole numbers"),
        ({"resources": {"pairs": {"hours": 0.001}}}, "resources.pairs.hours: 0.001 is less than the minimum of 0.02"),
    ],
)
def test_number_beyond_its_range_is_named(sections: dict[str, Any], message: str):
    assert message in refused(**sections)


IMAGES = {"kind": "images", "folder": "photos", "num_held_out": 1, "resolution": 2**30}


@pytest.mark.parametrize(
    ("side", "sections", "key"),
    [
        (2**30, {}, "dataset.resolution: 1073741824 is greater than the maximum of 16384"),
        (
            8192,
            {"pairs": {"batch_size": 1000}},
            "pairs.batch_size: 1000 images of 8192 x 8192 pixels (dataset.resolution)",
        ),
        (8192, {"sample": {"batch_size": 1000}}, "sample.batch_size: 1000 images"),
        (8192, {"distill": {"method": {"matching_batch_size": 392}}}, "distill.method.matching_batch_size: 392 images"),
    ],
)
def test_batch_or_shard_that_no_memory_holds_is_refused_by_its_key(side: int, sections: dict[str, Any], key: str):
    assert key in refused(dataset={**IMAGES, "resolution": side}, **sections)


NETWORKS = {
    "adm": {"width": 8192, "multipliers": [1, 2], "blocks": 100, "attention": []},
    "ncsnpp": {"width": 64, "multipliers": [100] * 16, "blocks": 100, "attention": []},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_that_no_memory_holds_is_refused_by_its_key(kind: str):
    phases = [{"updates": 1}]
    training = {"method": {"name": "denoising", "batch_size": 1, "phases": phases}}
    teacher = {"kind": "train", "network": {"kind": kind, **NETWORKS[kind]}, "training": training}
    assert "teacher.network.width: the weights are " in refused(teacher=teacher)


def test_states_of_trajectories_and_covariances_that_no_memory_holds_are_refused_by_their_keys():
    images, solver = {**IMAGES, "resolution": 64}, {"name": "heun", "steps": 10**5}
    message = refused(dataset=images, pairs={"kept_states": 10**5, "solver": solver})
    assert "pairs.batch_size: 6400064 images of 64 x 64 pixels" in message
    message = refused(dataset=images, reference={"features": {"kind": "pixels", "size": 256}})
    assert "reference.features.size: 256: their covariance is 309 GB" in message


def test_a_mixture_has_at_most_a_thousand_components():
    many = {"means": [[0, 0]] * 1001, "stds": [1.0] * 1001, "weights": [1.0] * 1001}
    mixture = {"kind": "gaussian-mixture", **many, "num_training": 1, "num_held_out": 1}
    assert "dataset.means" in refused(dataset=mixture)


def test_experiments_of_the_project_are_far_from_every_limit():
    config.load(ROOT / "config.yaml")
