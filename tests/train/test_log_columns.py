"""Log columns of one update: micro-batches add up to what a whole batch says."""

import math

import pytest
import torch

from dmd.train.log_columns import UpdateLog
from dmd.train.parallel import BatchSplit

NUM = 7
VALUES = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
ROW = VALUES.mean(1)
BINS = torch.tensor([0, 3, 3, 0, 3, 2, 0])
KEPT = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])


def filled(cut: list[slice]) -> UpdateLog:
    log = UpdateLog(BatchSplit())
    for place in cut:
        log.mean("mean", VALUES[place])
        log.mean("kept", ROW[place], weights=KEPT[place])
        log.scalar("scalar", ROW[place].mean(), len(ROW[place]))
        log.total("total", (ROW[place] > 1).float())
        log.spread("image", VALUES[place])
        log.binned("gap", ROW[place], BINS[place], 5)
    return log


def test_columns_are_what_they_say():
    found = filled([slice(0, NUM)]).columns()
    expected = {"mean": VALUES.mean(), "kept": ROW[KEPT > 0].mean(), "scalar": ROW.mean(), "total": (ROW > 1).sum()}
    expected |= {"image/mean": VALUES.mean(), "image/std": VALUES.std()}
    expected |= {f"gap{number}": ROW[BINS == number].mean() for number in range(5) if (BINS == number).any()}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-6, nan_ok=True)
    assert not found.keys() & {"gap1", "gap4"}  # of nothing


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_batch(size):
    whole, parts = filled([slice(0, NUM)]), filled(BatchSplit(micro_batch_size=size).slices(NUM))
    assert float(parts.value("mean")) == pytest.approx(float(whole.value("mean")), rel=1e-6)
    assert parts.columns() == pytest.approx(whole.columns(), rel=1e-6, nan_ok=True)


def test_values_of_rows_that_are_left_out_count_nothing_even_where_they_are_not_finite():
    log = UpdateLog(BatchSplit())
    log.mean("factor", torch.tensor([1.0, math.nan, 3.0, math.inf]), weights=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    log.mean("none", torch.tensor([math.nan]), weights=torch.tensor([0.0]))
    log.mean("bad", torch.tensor([1.0, math.nan]))
    found = log.columns()
    assert found["factor"] == 2.0 and math.isnan(found["none"]) and math.isnan(found["bad"])


def test_steps_of_one_update_count_the_same_whatever_their_size():
    log = UpdateLog(BatchSplit())
    log.scalar("loss", torch.tensor(1.0), 100)
    log.next_step()
    log.scalar("loss", torch.tensor(2.0), 1)
    log.scalar("loss", torch.tensor(4.0), 1)
    assert float(log.value("loss")) == 3.0  # of this step
    log.next_step()
    log.scalar("other", torch.tensor(7.0), 1)
    assert log.columns() == {"loss": (1.0 + 3.0) / 2, "other": 7.0}


def test_a_log_keeps_no_graph_and_may_be_empty():
    log = UpdateLog(BatchSplit())
    assert log.columns() == {}
    weight = torch.ones(3, requires_grad=True)
    log.mean("mean", weight * 2)
    log.scalar("scalar", weight.sum(), 3)
    log.spread("spread", weight * 2)
    assert not log.value("mean").requires_grad
    assert log.columns() == {"mean": 2.0, "scalar": 3.0, "spread/mean": 2.0, "spread/std": 0.0}


def test_spread_of_one_value_is_not_a_number():
    log = UpdateLog(BatchSplit())
    log.spread("one", torch.ones(1))
    found = log.columns()
    assert found["one/mean"] == 1.0 and math.isnan(found["one/std"])
