"""Every family, with random weights: the ViT branch alone computes what timm's model does."""

import pytest
import torch

from comer_d2.weights import load_pretrained
from comer_d2.weights.files import unwrap
from comer_d2.weights.pretrained import from_timm_model
from tests.weights import originals
from tests.weights.cases import CASES, check_features, make_net, make_timm, randomise

WRITTEN = [
    pytest.param(case, layout, id=f"{name}-{layout.__name__}")
    for name, case in CASES.items()
    for layout in (originals.as_it_is, *case.layouts)
]


@pytest.mark.parametrize(("case", "layout"), WRITTEN)
def test_features_and_accounts(case, layout, tmp_path):
    trained = randomise(make_timm(case)).state_dict()
    net = make_net(case)
    path = tmp_path / "weights.pth"
    written = layout(trained)
    torch.save(written, path)

    report = load_pretrained(net, path, family=case.family)

    check_features(case, net, trained)
    weights, _ = unwrap(written, "")
    assert report.source_elements == sum(t.numel() for t in weights.values())
    assert {entry.source for entry in report.entries} == {
        part.removeprefix("visual.").removeprefix("trunk.") if part.startswith("visual.") else part
        for part in weights
    }
    assert all(entry.note for entry in report.of("not used"))
    assert not report.of("resampled")
    branch = {n for n in net.state_dict() if n.split(".")[0] in BRANCH}
    assert not branch & set(report.fresh)


BRANCH = ("patch_embed", "pos_embed", "prefix_tokens", "norm_pre", "blocks")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_timms_own_model(case):
    """What `timm:<id>` does once timm has the weights: no family to be named."""
    model = randomise(make_timm(case))
    net = make_net(case)
    pretraining = from_timm_model(model, None, "timm")
    assert pretraining.computation["num_heads"] == 3
    assert not pretraining.unexpected
    load_pretrained(net, model.state_dict(), family=case.family)
    check_features(case, net, model.state_dict())
