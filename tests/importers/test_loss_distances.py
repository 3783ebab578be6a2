"""Which distance a section of a method gets."""

import pytest
import torch

from dmd.config.training import Distill
from dmd.importers.loss_distances import DistanceFiles, distances
from dmd.methods.parts.distances import l1_distance, l2_distance


@pytest.mark.parametrize("kind, expected", [("l1", l1_distance), ("l2", l2_distance)])
def test_a_formula_needs_no_weights(kind, expected):
    training = Distill.model_validate({"method": {"name": "dfno", "metric": {"kind": kind}}})
    assert distances(training, DistanceFiles(), torch.device("cpu")) == {"none": expected}
