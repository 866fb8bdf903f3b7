"""The moving average of weights against its formula, and the count of early stopping."""

import pytest
import torch
from torch import nn

from comer_d2.d2.engine.average import WeightAverage
from comer_d2.d2.engine.early_stopping import EarlyStopping


class Stub:
    """What the hook needs of a trainer."""

    def __init__(self, model: nn.Module) -> None:
        self.bare_model = model
        self.iter = 0


def test_the_formula_for_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    average = WeightAverage(model, decay=0.8)
    average.trainer = Stub(model)
    expected: dict[str, torch.Tensor] = {}
    for t in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3, dtype=torch.float64))  # moves the batch norm's buffers
        average.trainer.iter = t
        average.after_step()
        d = min(0.8, 1 - (1 + t) ** (-2 / 3))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = d * expected.get(name, value) + (1 - d) * value
            else:
                expected[name] = value.clone()
    assert 1 - 12 ** (-2 / 3) > 0.8  # the limit was reached
    assert expected["1.num_batches_tracked"] == 20
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    assert not average.model.training


def test_patience_counts_evaluations_that_are_no_better() -> None:
    stopping = EarlyStopping("bbox/AP", "max", patience=3, min_delta=0.5)
    stopping.observe([10.0, 10.4, 10.3])
    assert (stopping.count, stopping.is_due) == (2, False)
    stopping.observe([10.6])
    assert stopping.count == 0
    stopping.observe([float("nan"), 11.0, 11.1])
    assert stopping.is_due
    assert "bbox/AP got no better than 10.600 by more than 0.5 in 3 evaluations" in str(stopping)
    falling = EarlyStopping("val_loss", "min", patience=1)
    falling.observe([3.0, 2.0])
    assert not falling.is_due
    falling.observe([2.5])
    assert falling.is_due


@pytest.mark.parametrize("saved", [True, False])
def test_a_restored_average(saved: bool) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    average = WeightAverage(nn.Linear(2, 2), decay=0.9)
    average.restore(other.state_dict() if saved else None, model)
    assert torch.equal(average.model.weight, (other if saved else model).weight)
