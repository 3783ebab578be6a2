"""Bytes of the tiny digits chain, as commit 29f82d6 made them before methods had an interface of their own.

Each has two digests, of two kinds of processors, on which that commit adds up in another order.
"""

import hashlib
import math
import re
from pathlib import Path

import pytest
import torch

from dmd.data import manifest as manifests
from dmd.provenance import tensor_files
from tests.trainings import NAMES, changed, distil

ADAPTER = {"rank": 3, "alpha": None, "targets": None}
TEACHER = {
    "7e01fa9bd95b15d8852183f71db7499d728443654427252fbdc84395946c8194",
    "67b2cdfa6413374b2510f18e9efe4e7ff95468765278efb6da067b540500d43d",
}
CASES = {
    "plain": (
        {},
        {
            "99c44ad473711fa47fb1597adb48c8759c50e6ce31e48501d9da3684decc8d2a",
            "4a230173c1283cd4b62ae7fa8d00c3a482e629dbee0b7d490833c868ca12a46d",
        },
    ),
    "shared noise, joined pairs": (
        {"shared_noise": True, "match_pairs": True},
        {
            "b15a9acf6cb117a352f1526d677e4e486b249329c7920605373e304edaa444ab",
            "4604aa8a3d27b9bd8f69a0ae2d73367ef925c491d7a6c4e75c2515ae95157076",
        },
    ),
    "adapters": (
        {"adapter": ADAPTER},
        {
            "ef1bdde70b45accaf6e2cc94f7eb4a7be64ffa821c4fcc896d0694d79ae06634",
            "f3aa24e8b4952cec7d29c74a3df800e7afc63023da6347d5f22dc000d35a180a",
        },
    ),
    "micro-batches": (
        {"compute": {"micro_batch_size": 2}},
        {
            "c7f0c54ff98ae89f751f51162a452ae0d710c70f99bf68dcb60da8324cf0f396",
            "9f290454f3d75db3b2d81d946e30839b1525f9077090de2fcf6f41c347a99739",
        },
    ),
    "no fake score": (
        {"fake_score": False, "weighting": "sigma/alpha"},
        {
            "d6376e3bc1c1712f2b6a256f9c0c92134ea0a5a7cd07b3932c803e6ecda5a48f",
            "b7aa0421ad260004ae7406a99039c6cff574d177fa369200c59c611b1ebfffa9",
        },
    ),
    "moments of 8 bits, two rates": (
        {"student": {"kind": "8bit"}, "fake": {"learning_rate": 2.0e-3}},
        {
            "f8fd909ef54b94e16ab3196619ceef79d7d7d5d026191972454f5ba719184cc3",
            "dfbb9a6ead3d88f575c45dcdb6c8ae81eaf65fcd19ee375617737b7e202182c4",
        },
    ),
}
LAST_ROW = {  # of "plain", its second fake update included
    "loss/matching": 0.057751160115003586,
    "loss/regression": 10.000436782836914,
    "loss/fake": 0.574504017829895,
    "gradient_norm/student": 2.3516666889190674,
    "gradient_norm/fake": 0.9354661107063293,
    "matching/factor": 5.513831615447998,
    "matching/nonfinite": 0.0,
    "matching/gap2": 0.026512889191508293,
    "matching/gap6": 0.05369627848267555,
    "generated/mean": -0.14336644113063812,
    "generated/std": 0.21072953939437866,
}
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
same_kernels = pytest.mark.skipif(
    (torch.__version__, torch.backends.cpu.get_cpu_capability()) != ("2.13.0+cpu", "AVX512")
    or re.search(r"^vendor_id\s*: AuthenticAMD$(?!.*^cpu family\s*: 25$)", CPU, re.M | re.S) is not None,
    reason="another torch, or a processor on which this commit was not run, adds up in another order",
)


def digest(path: Path) -> str:
    """Of the tensors of a file, without the best weights, which that commit did not keep: names and bytes."""
    found, _ = tensor_files.load(path)
    whole = hashlib.sha256()
    for name in sorted(name for name in found if not name.startswith(("best.", "lora_best."))):
        whole.update(name.encode() + found[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


@same_kernels
def test_teacher_has_the_bytes_of_commit_29f82d6(teacher_file):
    assert digest(teacher_file) in TEACHER


@same_kernels
@pytest.mark.parametrize("case", CASES)
def test_student_has_the_bytes_of_commit_29f82d6(case, teacher_file, manifest_file, distill_section, tmp_path):
    keys, expected = CASES[case]
    section = changed(distill_section, **keys, monitor=None, grid_every=1000, checkpoint_every=1000)
    folder = distil(tmp_path, section, teacher=teacher_file, manifest=manifest_file)
    assert digest(folder / NAMES[0]) in expected


def test_log_has_the_numbers_of_commit_29f82d6(distilled_folder):
    """On any kernels: the sums of a row are added up in another order, too."""
    rows = manifests.read_table(distilled_folder / NAMES[1])[0].to_pylist()
    assert rows[0]["loss/regression"] == pytest.approx(10.360629081726074, rel=1e-4)
    own = {name: value for name, value in rows[-1].items() if "_teacher/" not in name}  # without the monitor's
    last = {name: value for name, value in own.items() if math.isfinite(value)}
    assert last == pytest.approx(LAST_ROW | {"update": 15, "phase": 2}, rel=1e-3)
