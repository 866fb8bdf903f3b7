"""The table of families in docs/PRETRAINED.md: its ids, arguments, licences and images are true."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from comer_d2.network import ViT
from comer_d2.weights import load_weights
from tests.weights.cases import randomise, timm_features, vit_features

PAGE = Path(__file__).parents[2] / "docs" / "PRETRAINED.md"
IMAGES = {  # mean and deviation
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}


@dataclass
class Row:
    """One family in the table."""

    family: str
    ids: list[str]
    arguments: dict[str, Any]
    tokens: int
    images: str
    licence: str


def rows() -> list[Row]:
    section = PAGE.read_text().split("\n## Families\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        Row(
            family,
            re.findall(r"`([^`]+)`", ids),
            eval(f"dict({', '.join(re.findall(r'`([^`]+)`', needs))})"),
            int(tokens),
            images,
            licence,
        )
        for family, ids, needs, _, tokens, images, licence, _ in cells
    ]


IDS = [pytest.param(row, name, id=name) for row in rows() for name in row.ids]


def test_every_family_has_its_row():
    expected = (
        "DeiT AugReg MAE DINOv2 registers BEiT BEiTv2 Uni-Perceiver DeiT-III SigLIP CLIP DINOv3"
    )
    names = " ".join(row.family for row in rows()) + " "
    assert all(
        f"{word}" in names for word in [*expected.split(), "distilled", "224", "384", "EVA-02"]
    )
    assert len(IDS) > 35


@pytest.mark.parametrize(("row", "name"), IDS)
def test_row(row, name, monkeypatch):
    """One block at the model's full width; fewer patches, which are as large as here."""
    config = timm.get_pretrained_cfg(name)
    assert config.license in row.licence.lower()
    assert (config.mean, config.std) == IMAGES[row.images]
    arguments = dict(depth=1, patch_size=16, img_size=64, num_classes=0)
    if "_pe_" in name:  # as Meta's own code, which does not scale positions
        arguments["ref_feat_shape"] = (4, 4)
    model = randomise(timm.create_model(name.split(".")[0], **arguments)).eval()
    for parameter in model.parameters():
        parameter.data *= 0.2
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    num_heads = model.blocks[0].attn.num_heads
    vit = ViT(
        embed_dim=model.embed_dim,
        num_heads=num_heads,
        depth=1,
        pretrain_img_size=64,
        window_size=0,
        window_block_indexes=(),
        num_prefix_tokens=row.tokens,
        **row.arguments,
    )
    report = load_weights(vit, f"timm:{name}")
    assert not report.of("resampled")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (expected,) = timm_features(model, image)
        (actual,) = vit_features(vit, image)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
