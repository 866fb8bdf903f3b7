"""An optimizer's state follows its parameters' names, its settings the config."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comer_d2.d2.engine.optimizer_state import load_optimizer, save_optimizer
from comer_d2.d2.errors import UserError


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})


def adamw(model: nn.Module, groups: list[list[str]], **settings: Any) -> torch.optim.AdamW:
    """One group of parameters per list of their names."""
    parameters = dict(model.named_parameters())
    return torch.optim.AdamW([{"params": [parameters[n] for n in g]} for g in groups], **settings)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state after two updates."""
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.rand(2, 3)
        for module in model.children():
            x = module(x)
        x.square().sum().backward()
        optimizer.step()
    return save_optimizer(optimizer, model)


def averages(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}


NAMES = [f"{module}.{leaf}" for module in "abc" for leaf in ("weight", "bias")]


@pytest.mark.parametrize("groups", [[NAMES], [NAMES[::-1]], [NAMES[3:], NAMES[:3]]])
def test_states_follow_names_into_other_groups(groups: list[list[str]]) -> None:
    """Another layer decay sorts the parameters into other groups, in another order."""
    model = make_model()
    before = adamw(model, [NAMES[:2], NAMES[2:]])
    saved = trained(model, before)
    after = adamw(model, groups)
    load_optimizer(after, model, saved)
    expected = averages(model, before)
    for name, average in averages(model, after).items():
        assert torch.equal(average, expected[name]), name


@pytest.fixture(autouse=True)
def _logs_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("comer_d2"), "propagate", True)


def test_settings_are_the_configs(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    saved = trained(model, adamw(model, [NAMES], lr=1e-3, weight_decay=0.1))
    optimizer = adamw(model, [NAMES], lr=5e-4, weight_decay=0.2, betas=(0.8, 0.99))
    load_optimizer(optimizer, model, saved)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"]) == (5e-4, 5e-4)
    assert (group["weight_decay"], tuple(group["betas"])) == (0.2, (0.8, 0.99))
    for line in ("lr is", "0.001 -> 0.0005", "weight_decay is", "0.1 -> 0.2", "betas is"):
        assert line in caplog.text


def test_unchanged_settings_are_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    optimizer = adamw(model, [NAMES], lr=1e-3)
    saved = trained(model, optimizer)
    for group in optimizer.param_groups:  # as the schedule does
        group["initial_lr"], group["lr"] = group["lr"], 1e-6
    saved = save_optimizer(optimizer, model)
    load_optimizer(adamw(model, [NAMES], lr=1e-3), model, saved)
    assert not caplog.text


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: adamw(model, [NAMES[:-1]]), r"other parameters .*: c\.bias \(1 in all\)"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "another optimizer"),
        (lambda model: adamw(model, [NAMES], amsgrad=True), "amsgrad"),
    ],
)
def test_what_does_not_fit_is_refused(optimizer: Any, message: str) -> None:
    model = make_model()
    saved = trained(model, adamw(model, [NAMES]))
    with pytest.raises(UserError, match=message):
        load_optimizer(optimizer(model), model, saved)


@pytest.mark.parametrize(
    ("average", "message"),
    [
        (torch.zeros(5), r"exp_avg of 'a\.weight' has shape \(5,\)"),
        (torch.full((3, 3), torch.nan), "not finite"),
    ],
)
def test_damaged_averages_are_refused(average: Tensor, message: str) -> None:
    model = make_model()
    saved = trained(model, adamw(model, [NAMES]))
    saved["state"][0]["exp_avg"] = average
    with pytest.raises(UserError, match=message):
        load_optimizer(adamw(model, [NAMES]), model, saved)


def test_a_damaged_count_of_steps_is_refused() -> None:
    model = make_model()
    saved = trained(model, adamw(model, [NAMES]))
    saved["state"][0]["step"] = torch.tensor(-3.0)
    with pytest.raises(UserError, match=r"damaged: step of 'a\.weight' is -3\.0"):
        load_optimizer(adamw(model, [NAMES]), model, saved)


def test_parameters_without_a_state_are_said(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    saved = trained(model, adamw(model, [NAMES]))
    del saved["state"][0]
    load_optimizer(adamw(model, [NAMES]), model, saved)
    assert f"nothing of 1 of {len(NAMES)} parameters" in caplog.text
    assert "a.weight" in caplog.text


@pytest.mark.parametrize(("before", "after"), [(True, True), (None, True), (True, None)])
def test_the_fused_update_goes_on_where_another_stopped(
    before: bool | None, after: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The same averages and count of steps; and to compute them otherwise is no change of settings."""
    model = make_model()
    saved = trained(model, adamw(model, [NAMES], fused=before))
    optimizer = adamw(model, [NAMES], fused=after)
    load_optimizer(optimizer, model, saved)
    assert not caplog.text
    (group,) = optimizer.param_groups
    assert group["fused"] is after
    states = zip(saved["state"].values(), optimizer.state.values(), strict=True)
    assert all(torch.equal(old[key], new[key]) for old, new in states for key in old)
    torch.manual_seed(1)
    trained(model, optimizer)
    assert all(state["step"] == 4 for state in optimizer.state.values())


@pytest.mark.parametrize("entry", ["step", "exp_avg", "exp_avg_sq"])
def test_an_entry_that_no_parameter_has_is_missed_at_resume(entry: str) -> None:
    """Not by a KeyError of the first step."""
    model = make_model()
    saved = trained(model, adamw(model, [NAMES]))
    for state in saved["state"].values():
        del state[entry]
    with pytest.raises(UserError, match=rf"of 'a\.weight' it holds .*, and not {entry}$"):
        load_optimizer(adamw(model, [NAMES]), model, saved)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True, fused=True),
        lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
        lambda parameters: torch.optim.NAdam(parameters, lr=0.1),
    ],
    ids=["sgd", "momentum", "amsgrad", "adafactor", "nadam"],
)
def test_every_optimizer_takes_its_own_state(make: Any) -> None:
    model = make_model()
    saved = trained(model, make(model.parameters()))
    optimizer = make(model.parameters())
    load_optimizer(optimizer, model, saved)
    assert optimizer.state_dict()["state"].keys() == saved["state"].keys()
    trained(model, optimizer)
