"""torchvision can be imported whether or not its compiled part loads."""

import subprocess
import sys

import pytest

PACKAGES = ("torchvision", "lpips", "torch_fidelity", "diffusers.models")


@pytest.mark.parametrize("package", PACKAGES)
def test_ensure_lets_a_package_that_needs_torchvision_be_imported(package):
    code = (
        f"from dmd import torchvision_operators as operators; operators.ensure(); operators.ensure(); import {package}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ensure_leaves_an_operator_that_cannot_be_called():
    code = (
        "import torch; from dmd import torchvision_operators as operators; operators.ensure(); import torchvision\n"
        "box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])\n"
        "try: print(torchvision.ops.nms(box, torch.ones(1), 0.5).tolist())\n"
        "except (RuntimeError, NotImplementedError) as error: print('refused')"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() in ("[0]", "refused")
