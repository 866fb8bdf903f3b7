"""The learning rate and weight decay that every parameter of a built detector ends up with."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers.batch_norm import LayerNorm as ChannelsFirstLayerNorm
from torch import nn

from comer_d2.d2.engine.optim import get_param_groups, settle_fused, vit_parameters
from comer_d2.d2.errors import UserError

FINETUNING, Mask2FormerAdamW, finetune = LazyConfig.load(
    str(Path(__file__).parents[3] / "configs" / "common" / "optim.py"),
    ("FINETUNING", "Mask2FormerAdamW", "finetune"),
)
COCO = Path(__file__).parents[3] / "configs" / "COCO"


def built(config: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A config's model, without memory, and its optimizer, as train_net.py makes them."""
    cfg = LazyConfig.load(str(COCO / config))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    return model, instantiate(cfg.optimizer)


def hyperparameters(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[float, float]]:
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in found, "in two groups"
            found[parameter] = (group["lr"], group["weight_decay"])
    return found


def expected_lr_scale(name: str, decay: float) -> float:
    """By the names that a ViT of 12 blocks has under an FPN; nothing else is scaled."""
    if re.match(r"backbone\.bottom_up\.vit\.(pos_embed$|patch_embed\.)", name):
        return decay**13
    if block := re.match(r"backbone\.bottom_up\.vit\.blocks\.(\d+)\.", name):
        return decay ** (12 - int(block[1]))
    return 1.0


def expected_decay(name: str, module: nn.Module) -> bool:
    """By what a parameter is: not by its shape, which is the rule under test."""
    norms = (nn.BatchNorm2d, nn.LayerNorm, ChannelsFirstLayerNorm)
    leaf = name.rpartition(".")[2]
    scale = leaf == "gamma"  # layer scale of the ViT, gate of CTI to V
    return not (isinstance(module, norms) or leaf in ("bias", "pos_embed") or scale)


# The heads of the authors' recipe, and ViTDet's, which have Detectron2's own LayerNorm.
@pytest.mark.parametrize(
    ("config", "decay", "weight_decay"),
    [("mask_rcnn_comer_s_1x.py", 0.70, 0.05), ("cascade_mask_rcnn_comer_s.py", 0.7, 0.1)],
)
def test_every_parameter(config: str, decay: float, weight_decay: float) -> None:
    model, optimizer = built(config)
    found = hyperparameters(optimizer)
    names = dict(model.named_parameters())
    assert set(found) == set(names.values())
    wrong = {}
    for name, parameter in names.items():
        module = model.get_submodule(name.rpartition(".")[0])
        lr = 1e-4 * expected_lr_scale(name, decay)
        wd = weight_decay if expected_decay(name, module) else 0.0
        if found[parameter] != pytest.approx((lr, wd), rel=1e-9):
            wrong[name] = (found[parameter], (lr, wd))
    assert not wrong


def test_the_kinds_by_name() -> None:
    """The same by hand, for one parameter of each kind: (power of the layer decay, decayed)."""
    model, optimizer = built("mask_rcnn_comer_s_1x.py")
    found = hyperparameters(optimizer)
    comer = "backbone.bottom_up."
    vit, interaction = f"{comer}vit.", f"{comer}interactions.0."
    expected = {
        f"{vit}pos_embed": (13, False),
        f"{vit}patch_embed.proj.weight": (13, True),
        f"{vit}patch_embed.proj.bias": (13, False),
        f"{vit}blocks.0.attn.qkv.weight": (12, True),
        f"{vit}blocks.0.ls1.gamma": (12, False),
        f"{vit}blocks.11.mlp.fc2.weight": (1, True),
        f"{vit}blocks.11.norm2.weight": (1, False),
        f"{comer}level_embed": (0, True),
        f"{comer}upsample.weight": (0, True),
        f"{comer}out_norms.0.weight": (0, False),
        f"{interaction}cti_to_v.gamma": (0, False),
        f"{interaction}cti_to_v.attn.value_proj.weight": (0, True),
        f"{interaction}cti_to_v.attn.sampling.bias": (0, False),
        f"{interaction}mrfp.fc1.weight": (0, True),
        "backbone.fpn_lateral2.weight": (0, True),
        "roi_heads.box_predictor.cls_score.weight": (0, True),
        "roi_heads.box_predictor.cls_score.bias": (0, False),
    }
    for name, (power, decayed) in expected.items():
        lr, weight_decay = found[model.get_parameter(name)]
        assert lr == pytest.approx(1e-4 * 0.7**power), name
        assert weight_decay == (0.05 if decayed else 0.0), name


def test_size_t_has_one_learning_rate_and_does_not_decay_level_embed() -> None:
    model, optimizer = built("mask_rcnn_comer_t_1x.py")
    found = hyperparameters(optimizer)
    assert {lr for lr, _ in found.values()} == {1e-4}
    assert found[model.backbone.bottom_up.level_embed] == (1e-4, 0.0)


def test_blocks_are_counted_in_any_backbone() -> None:
    """L has 24 blocks; the plain ViT's are under `backbone.net`."""
    model, optimizer = built("mask_rcnn_comer_l_1x.py")
    found = hyperparameters(optimizer)
    blocks = model.backbone.bottom_up.vit.blocks
    assert found[blocks[0].attn.qkv.weight][0] == pytest.approx(1e-4 * 0.8**24)
    assert found[blocks[23].attn.qkv.weight][0] == pytest.approx(1e-4 * 0.8)

    plain = nn.ModuleDict({"backbone": nn.ModuleDict({"net": nn.Module()})})
    plain.backbone.net.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
    groups = get_param_groups(plain, base_lr=1.0, weight_decay=0.1, lr_decay_rate=0.5)
    assert sorted({group["lr"] for group in groups}) == [0.25, 0.5]


def test_a_backbone_can_learn_more_slowly() -> None:
    model, optimizer = built("dino_swin_l_36ep.py")
    found = hyperparameters(optimizer)
    for name, parameter in model.named_parameters():
        assert found[parameter][0] == (1e-5 if name.startswith("backbone.") else 1e-4), name


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    model.head.bias.requires_grad_(False)
    groups = get_param_groups(model, base_lr=1.0, weight_decay=0.1)
    assert [group["params"] for group in groups] == [[model.head.weight]]


def test_layer_decay_does_not_concern_a_frozen_vit() -> None:
    cfg = LazyConfig.load(str(COCO / "mask_rcnn_comer_s_1x.py"))
    assert cfg.optimizer.params.lr_decay_rate < 1
    cfg.model.backbone.bottom_up.vit.freeze_at = 12
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trained = hyperparameters(instantiate(cfg.optimizer))
    assert {lr for lr, _ in trained.values()} == {cfg.optimizer.lr}
    names = [name for name, parameter in model.named_parameters() if parameter in trained]
    assert not [name for name in names if ".vit." in name]


@pytest.mark.parametrize(
    ("pretraining", "size"), [(name, size) for name, rows in FINETUNING.items() for size in rows]
)
def test_settings_of_a_pretraining_reach_every_block(pretraining: str, size: str) -> None:
    cfg = LazyConfig.load(str(COCO / "mask_rcnn_comer_s_1x.py"))
    cfg.optimizer = finetune(pretraining, size)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    rates = hyperparameters(instantiate(cfg.optimizer))
    settings = FINETUNING[pretraining][size]
    block = model.backbone.bottom_up.vit.blocks[0].attn.proj.weight
    for new in (model.roi_heads.box_head.fc1.weight, model.backbone.bottom_up.upsample.weight):
        assert rates[new] == (settings["lr"], settings["weight_decay"])
    slower = settings.get("lr_decay_rate", 1.0) ** 12 * settings.get("vit_lr_factor", 1.0)
    assert rates[block][0] == pytest.approx(settings["lr"] * slower)


def test_settings_of_a_pretraining_keep_what_mask2former_does_not_decay() -> None:
    optimizer = finetune("dinov2", "L", Mask2FormerAdamW)
    assert "query_feat" in optimizer.params.no_decay
    assert (optimizer.lr, optimizer.params.lr_decay_rate) == (1e-4, 0.8)
    assert Mask2FormerAdamW.params.lr_decay_rate == 1.0


def test_a_pretraining_without_a_source_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"no published settings .* siglip B, but: dinov2 S/B/L,.*mae B/L"
    ):
        finetune("siglip", "B")


def test_the_documented_settings_are_the_configs() -> None:
    """docs/PRETRAINED.md's table: pretraining, size, lr, layer decay, weight decay, batch, source."""
    page = (COCO.parents[1] / "docs" / "PRETRAINED.md").read_text()
    section = page.split("\n## Learning rates by pretraining\n")[1].split("\n## ")[0]
    cells = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| (\S+) \| ([^|]+) \| (\S+) \|", section, re.MULTILINE
    )
    documented: dict[str, dict[str, dict[str, float]]] = {}
    for pretraining, size, lr, slower, weight_decay in cells:
        settings = {"lr": float(lr), "weight_decay": float(weight_decay)}
        if slower.startswith("the ViT"):
            settings["vit_lr_factor"] = float(slower.split()[-1])
        elif slower != "none":
            settings["lr_decay_rate"] = float(slower)
        documented.setdefault(pretraining, {})[size] = settings
    assert documented == FINETUNING


def test_layer_decay_without_blocks_is_an_error() -> None:
    """A wrapped model, whose names all begin with `module.`, would silently train at full rate."""
    backbone = nn.Module()
    backbone.blocks = nn.ModuleList([nn.Linear(2, 2)])
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"backbone": backbone})})
    with pytest.raises(ValueError, match="pass the unwrapped model"):
        get_param_groups(wrapped, base_lr=1.0, weight_decay=0.1, lr_decay_rate=0.7)


def test_layer_decay_is_for_plain_vits() -> None:
    stages = [nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])}) for _ in range(2)]
    swin = nn.ModuleDict({"backbone": nn.ModuleDict({"layers": nn.ModuleList(stages)})})
    assert len(get_param_groups(swin, base_lr=1.0, weight_decay=0.1)) == 2
    with pytest.raises(
        ValueError, match=r"2 stages \(backbone.layers.0, ...\): it is for plain ViTs"
    ):
        get_param_groups(swin, base_lr=1.0, weight_decay=0.1, lr_decay_rate=0.7)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_layer_decay_must_be_a_rate(rate: float) -> None:
    with pytest.raises(ValueError, match=r"lr_decay_rate must be in \(0, 1\]"):
        get_param_groups(nn.Linear(2, 2), base_lr=1.0, weight_decay=0.1, lr_decay_rate=rate)


@pytest.mark.parametrize(
    "leaf",
    [
        "COCO/instance/mask2former_comer_s.py",
        "COCO/panoptic/mask2former_comer_b.py",
        "ADE20K/semantic/mask2former_comer_s.py",
        "COCOStuff/semantic/mask2former_comer_l.py",
    ],
)
def test_mask2formers_embeddings_are_not_decayed(leaf: str) -> None:
    """The official recipe decays no nn.Embedding: the decoder's queries and level embedding."""
    model, optimizer = built(f"../{leaf}")
    found = hyperparameters(optimizer)
    embeddings = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)
    }
    decoder = "sem_seg_head.predictor."
    assert embeddings == {
        f"{decoder}{n}.weight" for n in ("query_feat", "query_embed", "level_embed")
    }
    for name in embeddings:
        assert found[model.get_parameter(name)][1] == 0.0, name
    for name in ("sem_seg_head.pixel_decoder.transformer.level_embed", "backbone.level_embed"):
        assert found[model.get_parameter(name)][1] == 0.05, name


def test_the_update_is_fused_by_device() -> None:
    for device, given, expected in (
        ("cpu", None, None),
        ("cuda", None, True),
        ("cuda", False, False),
        ("cpu", True, True),
    ):
        cfg = LazyConfig.load(str(COCO / "mask_rcnn_comer_t_1x.py"))
        assert cfg.optimizer.fused is None
        cfg.optimizer.fused = given
        settle_fused(cfg.optimizer, device)
        cfg.optimizer.params = [nn.Parameter(torch.zeros(2))]
        assert instantiate(cfg.optimizer).defaults["fused"] is expected
    del cfg.optimizer["fused"]  # Detectron2's own
    settle_fused(cfg.optimizer, "cuda")
    assert "fused" not in cfg.optimizer


def vit_under_a_neck() -> nn.Module:
    """Names as in a detector: a ViT of two blocks, the CNN beside it, a head."""
    model = nn.ModuleDict({"backbone": nn.Module(), "head": nn.Linear(2, 2)})
    model.backbone.bottom_up = nn.Module()
    model.backbone.bottom_up.stem = nn.Linear(2, 2)
    model.backbone.bottom_up.vit = nn.Module()
    model.backbone.bottom_up.vit.pos_embed = nn.Parameter(torch.zeros(1, 2))
    model.backbone.bottom_up.vit.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
    return model


def test_the_vit_has_a_rate_of_its_own_next_to_the_layer_decay() -> None:
    model = vit_under_a_neck()
    groups = get_param_groups(model, 1.0, 0.1, lr_decay_rate=0.5, vit_lr_factor=0.1)
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    comer = model.backbone.bottom_up
    assert rates[comer.stem.weight] == rates[model.head.weight] == 1.0
    assert rates[comer.vit.blocks[1].weight] == pytest.approx(0.1 * 0.5)
    assert rates[comer.vit.pos_embed] == pytest.approx(0.1 * 0.5**3)


def test_the_vits_parameters() -> None:
    model = vit_under_a_neck()
    assert vit_parameters(model) == list(model.backbone.bottom_up.vit.parameters())
    with pytest.raises(ValueError, match="must be positive"):
        get_param_groups(model, 1.0, 0.1, vit_lr_factor=0)


def test_models_without_one_plain_vit_have_none_to_slow_down_or_freeze() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"vit_lr_factor is 0\.5"):
        get_param_groups(model, 1.0, 0.1, vit_lr_factor=0.5)
    with pytest.raises(UserError, match="no plain ViT to freeze"):
        vit_parameters(model)
