"""One training step: precision, accumulation, clipping, and what stops it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from comer_d2.d2.engine.hooks import FrozenStart
from comer_d2.d2.engine.step_record import StepRecorder
from comer_d2.d2.engine.trainer import SKIPPED_STEPS, Trainer
from comer_d2.d2.errors import TrainingError
from tests.remote import RemoteDevice, remote


class Regression(nn.Module):
    """Two losses of a list of (input, target) pairs, the second a constant to be set."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.extra = 0.0
        self.seen_dtype: torch.dtype | None = None

    def forward(self, batch: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        x, y = (torch.stack(values) for values in zip(*batch))
        prediction = self.linear(x)
        self.seen_dtype = prediction.dtype
        loss = (prediction.float() - y).square().mean()
        return {"loss_fit": loss, "loss_extra": loss * 0 + self.extra}


def make_trainer(batch_size: int = 4, lr: float = 0.1, **kwargs: Any) -> Trainer:
    torch.manual_seed(0)
    model = Regression()
    pairs = [(torch.randn(4), torch.randn(1)) for _ in range(8)]
    batches = [pairs[i : i + batch_size] for i in range(0, 8, batch_size)]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, itertools.cycle(batches), optimizer, device_type="cpu", **kwargs)


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_accumulated_batches_equal_one_large_batch() -> None:
    whole, parts = make_trainer(batch_size=8), make_trainer(batch_size=2, accumulation_steps=4)
    for trainer in (whole, parts):
        trainer.train(0, 3)
    torch.testing.assert_close(weights(parts), weights(whole))
    assert whole.storage.latest()["total_loss"] == pytest.approx(
        parts.storage.latest()["total_loss"]
    )
    assert whole.images_per_step == parts.images_per_step == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float) -> None:
    trainer = make_trainer()
    trainer.train(0, 2)
    before = weights(trainer)
    trainer.model.extra = value
    trainer._batches = None
    with pytest.raises(TrainingError, match=f"iteration 2: loss_extra = {value}") as error:
        trainer.train(2, 5)
    assert "loss_fit" not in str(error.value)
    assert torch.equal(weights(trainer), before)


def test_gradients_are_clipped_to_the_norm() -> None:
    free, clipped = make_trainer(lr=1.0), make_trainer(lr=1.0, max_grad_norm=0.01)
    start = weights(free)
    for trainer in (free, clipped):
        trainer.train(0, 1)
    assert (weights(free) - start).norm() > 0.1
    assert (weights(clipped) - start).norm() == pytest.approx(0.01, rel=1e-3)
    assert clipped.storage.latest()["grad_norm"][0] > 0.1  # the norm before clipping


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_gradients_that_are_not_finite_stop_before_the_update(max_grad_norm: float | None) -> None:
    trainer = make_trainer(max_grad_norm=max_grad_norm)
    before = weights(trainer)
    trainer.model.linear.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(TrainingError, match=r"gradient of 'linear\.weight' is not finite"):
        trainer.train(0, 1)
    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_what_is_kept_of_gradients_is_theirs_before_clipping(
    max_grad_norm: float | None, tmp_path: Path
) -> None:
    """Clipping by a norm that is not finite would make all of them NaN, and hide where it came from."""
    recorder = StepRecorder(str(tmp_path), None)
    trainer = make_trainer(max_grad_norm=max_grad_norm, recorder=recorder)
    trainer.model.linear.bias.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(TrainingError, match=r"gradient of 'linear\.bias' is not finite"):
        trainer.train(0, 1)
    norms = torch.load(tmp_path / "step_0000000.pth", weights_only=True)["grad_norms"]
    assert norms["linear.bias"] == math.inf
    assert 0 < norms["linear.weight"] < math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_in_that_dtype_and_keeps_float32_weights(dtype: torch.dtype) -> None:
    plain, mixed = make_trainer(), make_trainer(amp_dtype=dtype)
    # A small loss scale, so that no step is skipped while it is looked for.
    mixed.scaler = torch.amp.GradScaler("cpu", 8.0, enabled=dtype == torch.float16)
    for trainer in (plain, mixed):
        trainer.train(0, 4)
    assert mixed.model.seen_dtype == dtype
    assert weights(mixed).dtype == torch.float32
    torch.testing.assert_close(weights(mixed), weights(plain), atol=2e-2, rtol=2e-2)
    assert ("grad_scaler" in mixed.state_dict()) == (dtype == torch.float16)


def test_the_loss_scale_is_part_of_the_state() -> None:
    trainer = make_trainer(amp_dtype=torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", 8.0)
    trainer.train(0, 1)
    trainer.scaler.update(new_scale=128.0)
    other = make_trainer(amp_dtype=torch.float16)
    other.load_state_dict(trainer.state_dict())
    assert other.scaler.get_scale() == 128.0


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_float16_step_that_overflows_is_skipped(max_grad_norm: float | None) -> None:
    trainer = make_trainer(amp_dtype=torch.float16, max_grad_norm=max_grad_norm)
    trainer.scaler = torch.amp.GradScaler("cpu", 8.0)
    history = []
    trainer.optimizer.register_step_post_hook(lambda *_: history.append(trainer.iter))
    trainer.model.linear.weight.register_hook(
        lambda grad: grad * (torch.inf if trainer.iter == 1 else 1.0)
    )
    trainer.train(0, 4)
    assert history == [0, 2, 3]
    assert trainer.scaler.get_scale() == 4.0


def test_gradients_that_no_loss_scale_mends_stop_a_float16_run(tmp_path: Path) -> None:
    """With NaN in a gradient the scale halves for ever and nothing is learnt."""
    recorder = StepRecorder(str(tmp_path), None)
    trainer = make_trainer(amp_dtype=torch.float16, recorder=recorder)
    trainer.scaler = torch.amp.GradScaler("cpu", 8.0)
    trainer.train(0, 2)
    before = weights(trainer)
    trainer.model.linear.bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(TrainingError, match=r"'linear\.bias'") as error:
        trainer.train(2, 1000)
    assert f"last {SKIPPED_STEPS} steps" in str(error.value)
    assert "train.amp.dtype=bfloat16" in str(error.value)
    assert trainer.iter < 100
    assert torch.equal(weights(trainer), before)
    (path,) = tmp_path.glob("step_*.pth")  # the last of them, to be looked at
    assert str(path) in str(error.value)
    record = torch.load(path, weights_only=True)
    assert record["loss_scale"] == 8.0 * 0.5 ** (SKIPPED_STEPS - 1)  # of that step


def test_a_short_float16_run_that_takes_no_step_is_no_success() -> None:
    trainer = make_trainer(amp_dtype=torch.float16)
    trainer.model.linear.bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(TrainingError, match="all 3 steps"):
        trainer.train(0, 3)


def test_weights_that_are_not_finite_are_not_said_to_be_untouched() -> None:
    """An update that overflows is seen in the next loss, when the weights are gone already."""
    trainer = make_trainer()
    trainer.optimizer.param_groups[0]["lr"] = 3e38
    with pytest.raises(TrainingError, match=r"weight 'linear\.\w+' is not finite") as error:
        trainer.train(0, 5)
    assert "not updated" not in str(error.value)
    assert trainer.iter > 0


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_the_host_waits_once_a_step(max_grad_norm: float | None) -> None:
    """For losses, the gradients' norm and the wish to stop together."""
    expected = make_trainer(max_grad_norm=max_grad_norm)
    expected.train(0, 2)
    with RemoteDevice() as device:
        trainer = make_trainer(max_grad_norm=max_grad_norm)
        for name, parameter in list(trainer.model.linear.named_parameters()):
            setattr(trainer.model.linear, name, nn.Parameter(remote(parameter.detach())))
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.data_loader = [remote(batch) for batch in itertools.islice(trainer.data_loader, 2)]
        trainer.train(0, 2)
        assert len(device.waits) == 2, device.waits
        assert torch.equal(weights(trainer).values, weights(expected))
    for name in ("total_loss", "loss_fit", "grad_norm"):
        assert trainer.storage.latest()[name] == expected.storage.latest()[name]


def test_frozen_parameters_are_neither_updated_nor_clipped_with() -> None:
    free, frozen = make_trainer(max_grad_norm=0.01), make_trainer(max_grad_norm=0.01)
    frozen.frozen = [frozen.model.linear.weight]
    before = frozen.model.linear.weight.clone()
    for trainer in (free, frozen):
        trainer.train(0, 1)
    assert torch.equal(frozen.model.linear.weight, before)
    # The whole of the allowed norm is the bias's.
    steps = [
        abs(t.model.linear.bias - make_trainer().model.linear.bias).item() for t in (free, frozen)
    ]
    assert steps[1] == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert steps[0] < steps[1]


def test_the_vit_is_frozen_for_its_share_of_the_run() -> None:
    trainer = make_trainer()
    trainer.register_hooks([FrozenStart([trainer.model.linear.weight], share=0.5)])
    before = trainer.model.linear.weight.clone()
    seen = []

    class Watch(HookBase):
        def after_step(self) -> None:
            seen.append(torch.equal(self.trainer.model.linear.weight, before))

    trainer.register_hooks([Watch()])
    trainer.train(0, 4)
    assert seen == [True, True, False, False]


def test_a_model_that_gives_up_is_an_error_without_a_stack_trace() -> None:
    trainer = make_trainer()

    def give_up(*_: Any) -> None:
        raise FloatingPointError(
            "Predicted boxes or scores contain Inf/NaN. Training has diverged."
        )

    trainer.model.register_forward_pre_hook(give_up)
    with pytest.raises(TrainingError, match="has diverged at iteration 0; no checkpoint"):
        trainer.train(0, 1)


class Normalised(nn.Module):
    """Batch norm over a map of stride 32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, batch: list[dict[str, Any]]) -> Tensor:
        images = torch.stack([sample["image"] for sample in batch])
        return self.norm(images[..., ::32, ::32]).sum()


def test_images_too_small_for_batch_norm_are_named() -> None:
    model = Normalised()
    batches = [[{"image": torch.rand(3, 9, 20), "file_name": "photos/icon.png"}]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, batches, optimizer, device_type="cpu")
    message = r"one pixel .* of photos/icon\.png \(trained with at 20 x 9\)"
    with pytest.raises(TrainingError, match=message):
        trainer.train(0, 1)
