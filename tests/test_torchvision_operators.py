"""torchvision can be imported whether or not its compiled part loads."""

import contextlib
import subprocess
import sys

import torch

from dmd import torchvision_operators as operators


def test_ensure_lets_packages_that_need_torchvision_be_imported():
    code = (
        "from dmd import torchvision_operators as operators; operators.ensure(); operators.ensure()\n"
        "import lpips, torchvision, torch_fidelity, diffusers.models"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ensure_leaves_an_operator_that_cannot_be_called():
    operators.ensure()
    import torchvision

    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    with contextlib.suppress(RuntimeError):
        assert torchvision.ops.nms(box, torch.ones(1), 0.5).tolist() == [0]
