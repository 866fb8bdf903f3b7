"""comer-d2 convert and what it stands on: every direction, there and back, or no file."""

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comer_d2.__main__ import main
from comer_d2.weights import (
    WeightsError,
    convert_mask2former,
    convert_weights,
    load_pretrained,
    read_weights,
)
from comer_d2.weights.files import unwrap
from tests.networks import make_network
from tests.weights import originals
from tests.weights.cases import (
    CASES,
    SIDE,
    UNI_PERCEIVER,
    UniPerceiver,
    branch_features,
    make_net,
    make_timm,
    randomise,
    timm_features,
)

DATA = Path(__file__).parents[1] / "data"
LAYOUTS = [
    pytest.param(case, layout, id=f"{name}-{layout.__name__}")
    for name, case in CASES.items()
    for layout in (case.layouts or (originals.as_it_is,))
]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def tool(capsys):
    """The command line in this process: arguments -> what it printed, or its error."""

    def run(*arguments: object) -> str:
        code = main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        if code:
            raise SystemExit(printed.err)
        return printed.out

    return run


@pytest.fixture
def detector(tmp_path) -> Path:
    """The authors' Mask R-CNN, tiny, as MMDetection saves it."""
    tensors = load_file(DATA / "mmdet_mask_rcnn.safetensors")
    weights = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    torch.save({"state_dict": weights, "meta": {"epoch": 12}}, tmp_path / "epoch_12.pth")
    return tmp_path / "epoch_12.pth"


@pytest.fixture
def backbone(tmp_path) -> Path:
    """A backbone of this project."""
    net = make_net(CASES["mae"], num_prefix_tokens=0)
    save_file(net.state_dict(), tmp_path / "backbone.safetensors")
    return tmp_path / "backbone.safetensors"


@pytest.fixture
def dinov2(tmp_path) -> Path:
    """A pretrained ViT in the layout of Hugging Face transformers."""
    weights = randomise(make_timm(CASES["dinov2"])).state_dict()
    save_file(originals.dinov2_transformers(weights), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@torch.no_grad()
def assert_same_features(a: list[Tensor], b: list[Tensor]) -> None:
    for actual, expected in zip(a, b, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("case", "layout"), LAYOUTS)
def test_pretrained_vit_by_the_names_here(case, layout):
    """What is written loads like the file itself, and its family is still told by the names."""
    source, _ = unwrap(layout(randomise(make_timm(case)).state_dict()), "")
    converted, report = convert_weights(source, family=case.family)
    assert report.source_elements == sum(t.numel() for t in source.values())
    direct, indirect = make_net(case), make_net(case)
    load_pretrained(direct, source, family=case.family)
    reloaded = load_pretrained(indirect, converted, family=case.family)
    assert not reloaded.of("not used")
    own = indirect.state_dict()
    for name, tensor in direct.state_dict().items():
        if name.split(".")[0] in (
            "patch_embed",
            "pos_embed",
            "prefix_tokens",
            "norm_pre",
            "blocks",
        ):
            assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("layout", UNI_PERCEIVER)
def test_uni_perceiver_by_the_names_here(layout):
    oracle = randomise(UniPerceiver(layout is originals.uni_perceiver_post_norm).double())
    source, _ = unwrap(layout(oracle.original()), "")
    converted, _ = convert_weights(source)
    net = make_net(UNI_PERCEIVER[layout]).eval()
    load_pretrained(net, converted)
    image = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(branch_features(net, image), oracle.eval().features(image))
    with pytest.raises(WeightsError, match="timm has no model of the family 'uni-perceiver"):
        convert_weights(source, "timm")


@pytest.mark.parametrize(("case", "layout"), LAYOUTS)
def test_pretrained_vit_by_timms_names(case, layout):
    """timm's model with the converted weights computes what the one they were taken from does."""
    origin = randomise(make_timm(case))
    source, _ = unwrap(layout(origin.state_dict()), "")
    converted, report = convert_weights(source, "timm", family=case.family)
    model = make_timm(case, **PER_BLOCK if case.timm.get("use_shared_rel_pos_bias") else {})
    result = model.load_state_dict(converted, strict=False)
    heads = ("head.", "head_dist.", "attn_pool.", "norm.", "fc_norm.")
    assert all(name.startswith(heads) for name in result.missing_keys)
    assert all(name.startswith("norm.") for name in result.unexpected_keys)
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(timm_features(model, image), timm_features(origin, image))
    assert report.source_elements == sum(t.numel() for t in source.values())


PER_BLOCK = dict(use_rel_pos_bias=True, use_shared_rel_pos_bias=False)
# Cases in which a trained ViT-CoMer, with all its tokens, can go back to timm, and the families.
TRAINED = {
    "deit": "deit",
    "deit-distilled": "deit-distilled",
    "mae": "mae",
    "dinov2": "dinov2",
    "dinov2-registers": "dinov2",
    "dinov2-giant": "dinov2",
    "deit3": "deit3",
    "siglip2": "siglip2",
    "beit": "beit",
    "dinov3-qkv-bias": "dinov3",
    "dinov3-plus": "dinov3",
    "eva02-small": "eva02",
    "eva02-base": "eva02",
    "eva02-clip": "eva02",
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_vit_comer_by_timms_names(name):
    """The ViT out of a detector: as timm's model it computes what the branch does."""
    case, family = CASES[name], TRAINED[name]
    net = make_net(case)
    detector = {f"backbone.bottom_up.{n}": t for n, t in net.state_dict().items()}
    detector["roi_heads.box_predictor.cls_score.bias"] = torch.randn(5)
    converted, report = convert_weights(detector, "timm", family=family)
    model = make_timm(case)
    result = model.load_state_dict(converted, strict=False)
    assert not result.unexpected_keys
    heads = ("head.", "head_dist.", "attn_pool.", "norm.", "fc_norm.")
    assert all(name.startswith(heads) for name in result.missing_keys)
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(timm_features(model, image), branch_features(net, image))
    assert report.source_elements == sum(t.numel() for t in detector.values())
    assert not {e.source for e in report.of("loaded")} & {
        "roi_heads.box_predictor.cls_score.bias",
        "backbone.bottom_up.level_embed",
    }


def test_without_tokens_timm_has_a_model_without_them():
    """As the released models are: no class token. timm's DeiT can be made so."""
    net = make_net(CASES["deit"], num_prefix_tokens=0)
    converted, report = convert_weights(net.state_dict(), "timm", family="deit")
    model = timm.create_model(
        "deit_small_patch16_224",
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
        img_size=SIDE,
        embed_dim=48,
        depth=2,
        num_heads=3,
    )
    model = model.double().eval()
    rows = {
        entry.note: entry.elements for entry in report.entries if entry.source == "vit.pos_embed"
    }
    assert rows == {"": 16 * 48, "the class token's row; the network does not use it": 48}
    assert report.source_elements == sum(t.numel() for t in net.state_dict().values())
    scales = 4 * 48  # multiplied into the layers before them: DeiT has none
    assert sum(entry.elements for entry in report.of("loaded")) - scales == sum(
        tensor.numel() for tensor in converted.values()
    )
    result = model.load_state_dict(converted, strict=False)
    assert result.missing_keys == ["norm.weight", "norm.bias"] and not result.unexpected_keys
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert_same_features(timm_features(model, image), branch_features(net, image))


@pytest.mark.parametrize(
    ("name", "changes", "family", "message"),
    [
        ("mae", {}, None, "do not tell which ViT it was trained from"),
        ("mae", {}, "uni-perceiver", "do not tell which .* mae, dinov2,"),
        ("beit", dict(num_prefix_tokens=0), "beit", "timm's BEiT always has a class token"),
        ("beit", dict(window_size=[2, 0]), "beit", "one window in all blocks"),
        ("dinov3", {}, "dinov3", "timm's dinov3 has no bias of k"),
        ("eva02-small", {}, "mae", "timm's mae has no 'blocks.0.mlp.fc1_g.weight'"),
        ("deit", {}, "siglip2", "timm's siglip2 has 0 tokens before the patches, this ViT 1"),
        ("clip", {}, "deit", "timm's deit has no 'norm_pre.weight'"),
        ("clip", {}, "clip", "timm's clip has no 'patch_embed.proj.bias'"),
        ("beit", {}, "mae", "has no 'blocks.0.attn.relative_position_bias_table'"),
    ],
)
def test_what_timm_cannot_hold(name, changes, family, message):
    weights = make_net(CASES[name], **changes).state_dict()
    with pytest.raises(WeightsError, match=message):
        convert_weights(weights, "timm", family=family)


def test_authors_detector_there_and_back(tool, detector, tmp_path):
    here, back = tmp_path / "here.safetensors", tmp_path / "back.pth"
    printed = tool(detector, here)
    assert "Mask R-CNN" in printed and "interactions" in printed and "heads" in printed
    assert f"Wrote {here}: " in printed
    assert "backbone.bottom_up.vit.blocks.0.attn.qkv.weight" in load_file(here)
    tool(here, back, "--to", "official")
    assert same(
        torch.load(back, weights_only=True)["state_dict"],
        torch.load(detector, weights_only=True)["state_dict"],
    )


def test_backbone_there_and_back(tool, backbone, tmp_path):
    official, back = tmp_path / "official.safetensors", tmp_path / "back.safetensors"
    tool(backbone, official, "--to", "official")
    assert "spm.stem.0.weight" in load_file(official)
    tool(official, back)
    assert same(load_file(back), load_file(backbone))


def test_backbone_out_of_a_model(tool, tmp_path):
    """Heads that the authors have no names for can be left out."""
    net = make_net(CASES["mae"], num_prefix_tokens=0).state_dict()
    model = {f"backbone.{n}": t for n, t in net.items()} | {"sem_seg_head.a.weight": torch.ones(3)}
    save_file(model, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=r"have no names for sem_seg_head\.a\.weight"):
        tool(tmp_path / "model.safetensors", tmp_path / "a.pth", "--to", "official")
    printed = tool(
        tmp_path / "model.safetensors",
        tmp_path / "a.pth",
        "--to",
        "official",
        "--allow",
        "sem_seg_head.*",
    )
    assert "not used: sem_seg_head.a.weight (3): left out, as asked" in printed
    assert "spm.stem.0.weight" in read_weights(tmp_path / "a.pth")[0]


def test_official_mask2former(tool, tmp_path):
    numbers = load_file(DATA / "m2f_head_tiny.safetensors")
    head = {
        n.replace("param.", "sem_seg_head."): t
        for n, t in numbers.items()
        if n.startswith("param.")
    }
    backbone = {"backbone.stem.conv1.weight": torch.ones(4, 3, 7, 7)}
    torch.save({"model": head | backbone}, tmp_path / "model_final.pth")
    printed = tool(tmp_path / "model_final.pth", tmp_path / "head.safetensors")
    assert "not used: backbone.stem.conv1.weight (588): of another backbone" in printed
    assert same(load_file(tmp_path / "head.safetensors"), convert_mask2former(head))


def test_table_and_file_of_a_pretrained_vit(tool, dinov2, tmp_path):
    printed = tool(dinov2, tmp_path / "vit.pth")
    lines = [line.split() for line in printed.splitlines()]
    assert ["loaded", "not", "used"] in lines
    for group in (["patch", "embed"], ["position"], ["blocks"], ["heads"]):
        assert any(line[: len(group)] == group for line in lines), group
    assert "ViT-CoMer has no norm after the last block" in printed
    weights, _ = read_weights(tmp_path / "vit.pth")
    assert weights["pos_embed"].shape == (1, 17, 48)
    assert isinstance(make_network(**TINY).load_state_dict(weights, strict=False), tuple)


TINY = dict(
    embed_dim=48,
    depth=2,
    num_heads=3,
    num_prefix_tokens=1,
    pretrain_img_size=SIDE,
    interaction_indexes=[[0, 1]],
    deform_num_heads=3,
    window_block_indexes=[],
)


def test_sha256(tool, dinov2, tmp_path):
    good = hashlib.sha256(dinov2.read_bytes()).hexdigest()
    tool(dinov2, tmp_path / "a.safetensors", "--sha256", good)
    with pytest.raises(SystemExit, match=f"has SHA-256 {good}, not {'0' * 64}"):
        tool(dinov2, tmp_path / "b.safetensors", "--sha256", "0" * 64)
    assert not (tmp_path / "b.safetensors").exists()


def break_names(weights):
    weights["extra"] = torch.zeros(1)


def break_values(weights):
    weights["layernorm.weight"][0] = torch.nan


def break_shape(weights):
    weights["embeddings.position_embeddings"] = torch.zeros(1, 13, 48)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_names, "not of this family: extra"),
        (break_values, "'layernorm.weight' has NaN"),
        (break_shape, "13 rows"),
    ],
)
def test_failure_leaves_the_destination_as_it_was(tool, dinov2, tmp_path, damage, message):
    weights = load_file(dinov2)
    damage(weights)
    torch.save(weights, tmp_path / "bad.pth")
    destination = tmp_path / "out" / "vit.safetensors"
    destination.parent.mkdir()
    destination.write_bytes(b"what was here")
    with pytest.raises(SystemExit, match=message):
        tool(tmp_path / "bad.pth", destination)
    assert [path.name for path in destination.parent.iterdir()] == ["vit.safetensors"]
    assert destination.read_bytes() == b"what was here"


def test_failure_while_writing_leaves_the_destination_as_it_was(
    tool, dinov2, tmp_path, monkeypatch
):
    destination = tmp_path / "out" / "vit.safetensors"
    destination.parent.mkdir()
    destination.write_bytes(b"what was here")

    def full_disk(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("comer_d2.weights.files.save_file", full_disk)
    with pytest.raises(SystemExit, match=r"comer-d2 convert: error: No space left"):
        tool(dinov2, destination)
    assert [path.name for path in destination.parent.iterdir()] == ["vit.safetensors"]
    assert destination.read_bytes() == b"what was here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone.safetensors", "a.pth"], "has the names of this project already"),
        (["model.safetensors", "a.pth", "--to", "official"], "no ViT-CoMer by the names here"),
        (["nothing.pth", "a.pth"], "'nothing.pth' does not exist"),
        (["model.safetensors", "a.bin"], "'a.bin' must end in .safetensors, .pth or .pt"),
        (["model.safetensors", "no/a.pth"], "the folder 'no' does not exist"),
        (["model.safetensors", "a.pth", "--family", "clip"], "is not 'clip': by its names it is"),
        (["model.safetensors", "a.pth", "--allow", "*"], "nothing is left of it to convert"),
        (["timm:vit_tiny", "a.pth", "--to", "timm"], "can only be converted to the names here"),
        (["timm:vit_nothing_at_all", "a.pth"], "has no model 'vit_nothing_at_all'"),
    ],
)
def test_one_clear_error(tool, backbone, dinov2, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        tool(*arguments)
    assert message in str(e.value.code) and str(e.value.code).startswith("comer-d2 convert:")
    assert not list(tmp_path.glob("a.*"))
