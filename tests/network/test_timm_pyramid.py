"""timm's hierarchical networks as maps of stride 4 to 32: every family, any image size, equal to timm's own."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from comer_d2.network.timm_pyramid import SIZE_CHECKING, UNFIT, TimmPyramid, check_name
from comer_d2.network.trunk import STRIDES

# The smallest model of every module of timm that has maps of strides 4 to 32.
SMALLEST = {
    "byobnet": "test_byobnet",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientnet": "test_efficientnet",
    "efficientvit_mit": "efficientvit_b0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "lcnetv2": "lcnetv2_small",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "metaformer": "poolformerv2_s12",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "nasnet": "nasnetalarge",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception_aligned": "xception41p",
}
# The last two are longer than the pretraining's: a table made for that size would be too small.
ODD_SIZES = [(70, 101), (1, 200), (321, 31), (17, 321)]


def known_to_this_timm(names: dict[str, str]) -> list[str]:
    """Families come and go with timm's versions."""
    return [name for name in names.values() if timm.is_model(name)]


@pytest.mark.parametrize("name", known_to_this_timm(SMALLEST))
def test_every_family_at_odd_sizes(name: str) -> None:
    net = TimmPyramid(name).eval()
    with torch.no_grad():
        for h, w in ODD_SIZES:
            maps = net(torch.randn(1, 3, h, w))
            assert {key: tuple(m.shape) for key, m in maps.items()} == {
                key: (1, net.channels[key], math.ceil(h / s), math.ceil(w / s))
                for key, s in STRIDES.items()
            }


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_mambaout", "swin_tiny_patch4_window7_224", "test_resnet"]
)
def test_features_are_timms(name: str) -> None:
    """Channels-first and -last, with and without a map of stride 2, by the names of timm's whole model."""
    net = TimmPyramid(name).eval()
    extra = dict(strict_img_size=False, always_partition=True) if name.startswith("swin") else {}
    whole = timm.create_model(name, num_classes=0, **extra).eval()
    theirs = whole.state_dict()
    # In timm's feature extractors a module `a.b` may be called `a_b`.
    ours = net.net.state_dict()
    prefix = "model." if all(key.startswith("model.") for key in ours) else ""
    renamed = {prefix + key: key for key in theirs} | {
        prefix + key.replace(".", "_", 1): key for key in theirs
    }
    net.net.load_state_dict({key: theirs[renamed[key]] for key in ours})
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")
        maps = net(image)
    for m, e in zip(maps.values(), expected[-4:], strict=True):
        torch.testing.assert_close(m, e, rtol=0, atol=0)


@pytest.mark.parametrize("module", SIZE_CHECKING)
def test_windows_are_shifted_in_the_last_stage_too(module: str) -> None:
    """timm leaves that out where the pretraining's map is one window; on larger images it is many."""
    net = TimmPyramid(SMALLEST[module])
    blocks = list(net.net.children())[-1].blocks
    shift = blocks[0].window_size[0] // 2
    assert [block.shift_size for block in blocks] == [(0, 0), (shift, shift)]


def test_image_is_padded_with_zeros_at_bottom_and_right() -> None:
    net = TimmPyramid("test_convnext").eval()
    image = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :40, :50] = image
    with torch.no_grad():
        for key, stride in STRIDES.items():
            whole = net(padded)[key][..., : math.ceil(40 / stride), : math.ceil(50 / stride)]
            assert torch.equal(net(image)[key], whole)


@pytest.mark.parametrize("unfit", sorted(UNFIT))
def test_networks_of_one_image_size_are_refused_by_name(unfit: str) -> None:
    names = [unfit] if timm.is_model(unfit) else timm.list_models(module=unfit)
    if not names:
        pytest.fail(f"timm has no module and no model {unfit} any more")
    with pytest.raises(ValueError, match=rf"{names[0]}.*take "):
        TimmPyramid(names[0])


def test_proposed_networks_are_fit() -> None:
    for instead in UNFIT.values():
        for word in instead.replace(",", "").split():
            if timm.is_model(word):
                check_name(word)


def test_plain_vits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \[16, 16, 16\]"):
        TimmPyramid("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("swin_tini_patch4", "; near it: swin_tiny_patch4_window7_224, "),
        ("swin_tiny", "; near it: swin_tiny_patch4_window7_224"),
        ("resnet-50", "; near it: resnet50, "),
        ("timm:ResNet50", "; near it: resnet50, "),
        ("hf-hub:timm/convnext_tiny.fb_in1k", "; near it: convnext_tiny, "),
        ("", r"; timm\.list_models\(\) has its names"),
    ],
)
def test_unknown_names_are_refused_with_known_ones(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"has no model '{name}'{near}"):
        TimmPyramid(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": 3}, "timm cannot make swin_.* with .*'depths': 3"),
        ({"embed_dim": 0}, "timm cannot make swin_.* with .*'embed_dim': 0"),
        ({"window_size": 0}, "timm cannot make swin_.* with .*'window_size': 0.*must be positive"),
        (
            {"in_chans": 1, "out_indices": [0]},
            "cannot have in_chans, out_indices: in_chans .*beside",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmPyramid("swin_tiny_patch4_window7_224", arguments=arguments)


def test_images_of_other_channels() -> None:
    maps = TimmPyramid("test_resnet", in_chans=1).eval()(torch.zeros(1, 1, 8, 8))
    assert maps["res2"].shape[-2:] == (2, 2)
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\).*got \(1, 4, 8, 8\)"):
        TimmPyramid("test_resnet")(torch.zeros(1, 4, 8, 8))


def test_size_checking_modules_exist() -> None:
    assert all(timm.list_models(module=module) for module in SIZE_CHECKING)
