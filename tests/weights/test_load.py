"""Loading into whole models: every part complete or untouched, from every kind of source."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.weights import WeightsError, convert_weights, load_weights, write_weights

TINY_VIT = dict(
    embed_dim=24,
    depth=2,
    num_heads=3,
    window_size=0,
    window_block_indexes=(),
    pretrain_img_size=64,
)
SMALL = dict(
    stem_width=8,
    interaction_indexes=((0, 0), (1, 1)),
    deform_num_heads=3,
    num_extra_cti=1,
)


class Detector(nn.Module):
    """The names of a detector: an FPN around the backbone, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = ViTCoMerNet(ViT(**TINY_VIT), **SMALL)
        self.backbone.fpn_lateral2 = nn.Conv2d(24, 8, 1)
        self.backbone.fpn_output2 = nn.Conv2d(8, 8, 3)
        self.roi_heads = nn.Module()
        self.roi_heads.box_head = nn.Linear(8, 6)
        self.roi_heads.mask_head = nn.Linear(8, 4)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector()


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value + 3
        for name, value in Detector().state_dict().items()
    }


def assert_loaded(model: nn.Module, expected: dict[str, Tensor]) -> None:
    own = model.state_dict()
    for name, value in expected.items():
        assert torch.equal(own[name], value), name


def part(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(prefixes)}


WRAPPERS = ("", "module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_checkpoint_of_the_model(
    detector: Detector, trained: dict[str, Tensor], wrapper: str
) -> None:
    report = load_weights(
        detector, {wrapper + name: value for name, value in trained.items()}, complete=True
    )
    assert_loaded(detector, trained)
    assert report.source_elements == sum(value.numel() for value in trained.values())
    assert not report.fresh
    assert not report.of("not used")


def test_a_compiled_part(detector: Detector, trained: dict[str, Tensor]) -> None:
    compiled = {
        name.replace("bottom_up.", "bottom_up._orig_mod."): value for name, value in trained.items()
    }
    load_weights(detector, compiled, complete=True)
    assert_loaded(detector, trained)
    with pytest.raises(WeightsError, match="two models in one state dict"):
        load_weights(detector, compiled | trained)


def test_averages_in_a_file_are_named(
    detector: Detector, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    average = {name: value + 1 for name, value in trained.items()}
    torch.save({"model": trained, "model_ema": average}, tmp_path / "both.pth")
    report = load_weights(detector, tmp_path / "both.pth", complete=True)
    assert_loaded(detector, trained)
    assert "not used: a moving average of the weights, ['model_ema']" in str(report)
    torch.save({"state_dict_ema": average}, tmp_path / "average.pth")
    load_weights(detector, tmp_path / "average.pth", complete=True)
    assert_loaded(detector, average)
    swa = torch.optim.swa_utils.AveragedModel(detector)
    wrapped = {f"module.{name}": value for name, value in trained.items()}
    assert wrapped.keys() | {"n_averaged"} == swa.state_dict().keys()
    report = load_weights(detector, wrapped | {"n_averaged": swa.n_averaged}, complete=True)
    assert_loaded(detector, trained)
    assert "a moving average of the weights (AveragedModel" in str(report)
    beside = {"ema_" + name.replace(".", "_"): value for name, value in trained.items()}
    with pytest.raises(WeightsError, match=r"ema_backbone_\S+ \(.*a moving average of the weights"):
        load_weights(detector, trained | dict(list(beside.items())[:3]))


def test_a_family_is_for_pretrained_vits(detector: Detector, trained: dict[str, Tensor]) -> None:
    """A config that names one also evaluates what was trained with it."""
    load_weights(detector, trained, family="clip", complete=True)
    assert_loaded(detector, trained)


def test_whole_parts_may_be_absent_but_are_listed(
    detector: Detector, trained: dict[str, Tensor]
) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    given = part(trained, "backbone.", "roi_heads.box_head")
    report = load_weights(detector, given)
    assert_loaded(detector, given)
    assert_loaded(detector, part(before, "roi_heads.mask_head"))
    assert set(report.fresh) == {"roi_heads.mask_head.weight", "roi_heads.mask_head.bias"}
    assert "heads" in str(report)
    with pytest.raises(WeightsError, match=r"roi_heads\.mask_head\.weight, .*: missing"):
        load_weights(detector, given, complete=True)


@pytest.mark.parametrize("absent", ["level_embed", "interactions.1.", "out_norms."])
def test_a_bare_backbone_is_one_part(detector: Detector, absent: str) -> None:
    """Without a model around it, as in one, it is complete or an error."""
    net = detector.backbone.bottom_up
    trained = {name: value + 1 for name, value in net.state_dict().items()}
    given = {name: value for name, value in trained.items() if not name.startswith(absent)}
    with pytest.raises(WeightsError, match=rf"{absent}.*: missing"):
        load_weights(net, given)
    load_weights(net, part(trained, "vit."))
    assert_loaded(net, part(trained, "vit."))


def test_a_backbone_alone_finds_its_place(detector: Detector, trained: dict[str, Tensor]) -> None:
    prefix = "backbone.bottom_up."
    backbone = {name.removeprefix(prefix): value for name, value in part(trained, prefix).items()}
    load_weights(detector, backbone)
    assert_loaded(detector, part(trained, prefix))


@pytest.mark.parametrize("wrapper", ["", "backbone."])
def test_the_authors_backbone_finds_its_place(
    detector: Detector, trained: dict[str, Tensor], wrapper: str
) -> None:
    prefix = "backbone.bottom_up."
    backbone = {name.removeprefix(prefix): value for name, value in part(trained, prefix).items()}
    converted, _ = convert_weights(detector.backbone.bottom_up, backbone, "official")
    official = {wrapper + name: value for name, value in converted.items()}
    report = load_weights(detector, official)
    assert_loaded(detector, part(trained, prefix))
    assert sum(report.fresh.values()) == sum(
        value.numel()
        for name, value in trained.items()
        if not name.startswith(prefix) and value.is_floating_point()
    )


def test_a_pretrained_vit_finds_its_place_and_is_not_for_evaluation(
    detector: Detector, trained: dict[str, Tensor]
) -> None:
    prefix = "backbone.bottom_up.vit."
    vit = {
        name.removeprefix(prefix): value
        for name, value in part(trained, prefix).items()
        if ".ls" not in name
    }
    vit |= {"cls_token": torch.randn(1, 1, 24), "norm.weight": torch.ones(24)}
    vit |= {"norm.bias": torch.zeros(24)}
    report = load_weights(detector, vit)
    assert_loaded(detector, {prefix + n: v for n, v in vit.items() if n.startswith("blocks")})
    assert report.counts()["heads"]["fresh"]
    with pytest.raises(WeightsError, match=r"is a pretrained ViT .*Train from it first"):
        load_weights(detector, vit, complete=True)


CHANGES = {
    "a tensor of a part is missing": (
        {"roi_heads.box_head.bias": None},
        r"roi_heads\.box_head\.bias: missing",
    ),
    "a block is missing": (
        {"backbone.bottom_up.vit.blocks.1.attn.qkv.weight": None},
        r"backbone\.bottom_up\.vit\.blocks\.1\.attn\.qkv\.weight: missing",
    ),
    "half of the pyramid is missing": (
        {"backbone.fpn_output2.weight": None, "backbone.fpn_output2.bias": None},
        r"backbone\.fpn_output2\.weight, backbone\.fpn_output2\.bias: missing",
    ),
    "a tensor too many": (
        {"roi_heads.box_head.scale": torch.ones(1)},
        r"roi_heads\.box_head\.scale \(without a place in this model\)",
    ),
    "another shape": (
        {"roi_heads.mask_head.weight": torch.ones(5, 8)},
        r"roi_heads\.mask_head\.weight: of shape \(5, 8\), in the model \(4, 8\)",
    ),
    "a value that is not a number": (
        {"roi_heads.mask_head.bias": torch.full((4,), torch.nan)},
        r"'roi_heads\.mask_head\.bias' has NaN",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_an_error_and_changes_nothing(
    detector: Detector, trained: dict[str, Tensor], change: str
) -> None:
    changes, message = CHANGES[change]
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    weights = {n: v for n, v in {**trained, **changes}.items() if v is not None}
    for complete in (False, True):
        with pytest.raises(WeightsError, match=message):
            load_weights(detector, weights, complete=complete)
        assert_loaded(detector, before)


def test_what_is_allowed_is_listed(detector: Detector, trained: dict[str, Tensor]) -> None:
    weights = {
        **trained,
        "roi_heads.mask_head.weight": torch.ones(5, 8),
        "roi_heads.extra": torch.ones(7),
    }
    del weights["roi_heads.mask_head.bias"]
    report = load_weights(
        detector, weights, allow=["roi_heads.mask_head.*", "roi_heads.extra"], complete=True
    )
    assert {entry.source for entry in report.of("not used")} == {
        "roi_heads.mask_head.weight",
        "roi_heads.extra",
    }
    assert set(report.fresh) == {"roi_heads.mask_head.weight", "roi_heads.mask_head.bias"}


def test_something_else_altogether(detector: Detector) -> None:
    with pytest.raises(WeightsError, match="nothing that is known here"):
        load_weights(detector, {"conv1.weight": torch.ones(3)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_from_a_file(
    detector: Detector, trained: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    write_weights(tmp_path / f"a{suffix}", trained)
    load_weights(detector, tmp_path / f"a{suffix}", complete=True)
    assert_loaded(detector, trained)
