"""Makes torchvision importable where its compiled extension does not load, for example beside a CPU build of torch.

lpips, torch-fidelity, transformers and diffusers import torchvision, which registers fake kernels for operators that
only its extension defines. Without the extension that import fails. Calling such an operator still fails.
"""

import functools
import importlib.util
import re
from pathlib import Path

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # of nms and qnms, the ones that fail


@functools.cache
def ensure() -> None:
    """Defines the missing operators; to be called before torchvision is imported. Does nothing if its extension loads.

    Raises:
        ValueError: torchvision is not installed.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ValueError("torchvision is not installed: install envs/requirements.txt (`make demo` does)")
    folder = Path(found.origin).parent
    if any(_loads(path) for path in sorted(folder.glob("_C*"))):
        return
    source = (folder / "_meta_registrations.py").read_text()
    for name in re.findall(r'register_fake\("(torchvision::\w+)"\)', source):
        torch.library.define(name, SCHEMA)


def _loads(library: Path) -> bool:
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True
