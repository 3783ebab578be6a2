"""The report of a table that is made in parts."""

import json

import pytest
import torch

from bench import methods_report
from dmd.config import Experiments, load
from dmd.provenance import tensor_files

ROWS = {"DMD": ["digits", "digits-seed1"], "SiD": ["digits-sid", "digits-sid-seed1"]}


@pytest.fixture(scope="module")
def configuration():
    config = load()
    return Experiments(config), config.tables["methods"]


def finish(results, name, *, distance, kid=0.25):
    """The score files of an experiment, as far as the report reads them."""
    (results / name).mkdir(parents=True)
    files = {"fid": {"value": distance, "network_calls": 1, "floor": {"mean": 0.5}}, "kid": {"value": kid}}
    files["prdc"] = {"recall": {"value": 0.75}}
    files |= {"classes": {"accuracy": None}, "memorisation": {"nearer": {"value": 0.0}}}
    for kind, score in files.items():
        (results / name / f"{kind}.json").write_text(json.dumps(score))


def test_a_line_stays_until_the_configuration_describes_another_run(tmp_path, configuration):
    experiments, table = configuration
    path, results = tmp_path / "runs.csv", tmp_path / "results"
    finish(results, "digits", distance=1.5)
    finish(results, "digits-sid", distance=2.0)
    first = methods_report.runs(path, results, experiments, table)
    assert list(first) == ["digits", "digits-sid"] and first["digits"]["excess"] == 1.0
    assert first["digits"]["passes"] > 0 and "accuracy" not in first["digits"]
    again = methods_report.runs(path, tmp_path / "nothing", experiments, table)
    assert again == first
    digest = methods_report.described(experiments, "digits-sid")
    path.write_text(path.read_text().replace(digest, "another"))
    assert list(methods_report.runs(path, tmp_path / "nothing", experiments, table)) == ["digits"]


def test_seconds_are_of_trainings_that_did_not_resume(tmp_path, configuration):
    experiments, _ = configuration
    finish(tmp_path, "digits", distance=1.5)
    for part, name, text in (("benchmarks", "distill.tsv", "s\tcpu_time\n9\t8.5\n"), ("logs", "distill.log", "done")):
        (tmp_path / "digits" / part).mkdir()
        (tmp_path / "digits" / part / name).write_text(text)
    assert methods_report.measured(tmp_path, experiments, "digits")["seconds"] == 8.5
    (tmp_path / "digits" / "logs" / "distill.log").write_text("continuing at update 100 from a file")
    assert "seconds" not in methods_report.measured(tmp_path, experiments, "digits")


def test_results_of_other_settings_are_refused(tmp_path, configuration):
    experiments, _ = configuration
    finish(tmp_path, "digits", distance=1.5)
    (tmp_path / "digits" / "distill").mkdir()
    generator = tmp_path / "digits" / "distill" / "generator.safetensors"
    spec = experiments.spec("digits", "distill")
    tensor_files.save(generator, {"a": torch.zeros(1)}, {"spec": spec})
    assert methods_report.measured(tmp_path, experiments, "digits")
    tensor_files.save(generator, {"a": torch.zeros(1)}, {"spec": {**spec, "seed": 9}})
    with pytest.raises(
        SystemExit, match="is of other settings than the configuration has: make .*digits/fid.json again"
    ):
        methods_report.measured(tmp_path, experiments, "digits")


def test_rows_are_compared_seed_by_seed(tmp_path, configuration):
    experiments, table = configuration
    for shift, names in enumerate(ROWS.values()):
        for seed, name in enumerate(names):
            finish(tmp_path, name, distance=1 + 0.5 * shift + seed * (1 + shift / 10))
    found = methods_report.runs(tmp_path / "runs.csv", tmp_path, experiments, table)
    text = methods_report.differences(table, experiments, found)
    (row,) = [line for line in text.splitlines() if line.startswith("| SiD - DMD")]
    # differences .5 and .6: t(.975, 1) = 12.706 times the error .05
    assert row.split(" | ")[1:3] == ["2", "0.550 [-0.0853, 1.19]"]
