"""Heavy packages are imported by the stages that use them, and by no other."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("diffusers", "transformers", "torchvision", "lpips", "sklearn", "scipy", "matplotlib", "pandas", "onnx")
HEAVY += ("onnxruntime", "onnxscript", "torch_fidelity", "peft", "torchao", "sympy", "torch._dynamo", "pyarrow.dataset")
HEAVY += ("webdataset",)
STAGES = ("teacher", "reference", "pairs", "manifest", "distill", "sample", "features", "evaluate")
STAGES += ("inception_score", "text_encoder", "autoencoder")


def imported(*statements: str, packages: tuple[str, ...] = HEAVY) -> list[set[str]]:
    """Packages, of these, that a fresh interpreter has loaded after each of some statements."""
    look = f"print(*[name for name in {packages!r} if name in sys.modules])"
    code = "\n".join(["import sys", *(f"{statement}; {look}" for statement in statements)])
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(line.split()) for line in answer.stdout.splitlines()]


def test_stages_of_the_chain_import_no_heavy_package_before_they_need_it():
    assert imported("; ".join(f"import dmd.stages.{name}" for name in STAGES)) == [set()]


def test_what_the_snakefile_imports_brings_no_torch():
    modules = ("dmd", "dmd.config", "dmd.config.schema", "dmd.provenance.files", "dmd.status")
    assert imported(*(f"import {name}" for name in modules), packages=("torch",)) == [set()] * len(modules)


def test_stages_without_a_network_bring_no_torch():
    """The import of torch would be most of their time and memory."""
    stages = ("fetch", "tables", "manifest", "prompts", "charts")
    assert imported(*(f"import dmd.stages.{name}" for name in stages), packages=("torch",)) == [set()] * len(stages)


def test_digits_alone_bring_scikit_learn():
    mixture = {"kind": "gaussian-mixture", "means": [[0.0, 0.0]], "stds": [1.0], "weights": [1.0]}
    mixture |= {"num_training": 4, "num_held_out": 4, "seed": 0}
    digits = {"kind": "digits", "split_seed": 0, "num_training": 4}
    load = "from dmd.data import dataset; dataset.load({!r}, 'training')"
    before, after = imported(load.format(mixture), load.format(digits))
    assert before == set() and "sklearn" in after


def test_drawing_and_listing_bring_neither_the_compiler_nor_pandas(teacher_file, pairs_numbers, tmp_path):
    """Both would be imported by functions of torch and pyarrow that look harmless, 1.6 s of a stage."""
    block, listed = tmp_path / "points" / "pairs" / "blocks" / "b.parquet", tmp_path / "points" / "pairs" / "m.parquet"
    draw = "from pathlib import Path; from dmd.stages import pairs, manifest; "
    draw += f"pairs.run(teacher=Path({str(teacher_file)!r}), output=Path({str(block)!r}), **{pairs_numbers!r})"
    num, size = 2 * pairs_numbers["shard_size"], pairs_numbers["shard_size"]
    lists = f"manifest.run(blocks=[Path({str(block)!r})], output=Path({str(listed)!r}), num={num}, shard_size={size})"
    reads = f"from dmd.data import manifest; manifest.read_table(Path({str(listed)!r}))"
    assert imported(draw, lists, reads) == [{"webdataset"}] * 3  # which writes the shard
    compiled = "import torch; torch.use_deterministic_algorithms(True)"
    assert imported(compiled)[0] >= {"torch._dynamo", "sympy"}  # what it would be


def test_garbage_is_looked_for_after_the_imports_of_a_stage(tmp_path):
    """A stage searches after its imports; a program that imports a stage searches as it did."""
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.set_debug(gc.DEBUG_STATS)")
    begun = "import gc, sys; sys.argv[0] = '-m'; import dmd.stages; from dmd.jobs import garbage_collection; "
    begun += "assert not gc.isenabled(); "
    begun += "garbage_collection.switch_on(); assert gc.isenabled() and gc.get_freeze_count() > 1000"
    searches = []
    for line in (["-m", "dmd.stages.evaluate", "--help"], ["-c", "import dmd.stages.evaluate"], ["-c", begun]):
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        done = subprocess.run([sys.executable, *line], check=True, capture_output=True, text=True, env=environment)
        searches.append(done.stderr.count("gc: collecting generation"))
    assert searches[0] * 10 < searches[1]
