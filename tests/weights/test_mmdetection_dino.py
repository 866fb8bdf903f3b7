"""MMDetection's DINO checkpoints: the head strictly, whatever the backbone.

tests/data has every name and shape of dino-4scale_r50 but its backbone's (keys_mmdet_dino.txt), and a
small one's weights with what it computes (mmdet_dino, see tests/heads/dino/test_oracle.py).
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from comer_d2.heads.dino import (
    ChannelMapper,
    DenoisingGenerator,
    DINODecoder,
    DINOEncoder,
    DINOHead,
    ProposalHead,
)
from comer_d2.weights import WeightsError, convert_weights, load_weights

KEYS = Path(__file__).parents[1] / "data" / "keys_mmdet_dino.txt"
BACKBONE = {"backbone.conv1.weight": torch.ones(1), "backbone.bn1.running_var": torch.ones(1)}


class DINO(nn.Module):
    """A model's names: a backbone that MMDetection's has not, and the head."""

    def __init__(self, in_channels: tuple[int, ...], num_levels: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = DINOHead(
            neck=ChannelMapper(
                in_features=[f"res{i}" for i in range(len(in_channels))],
                in_channels=in_channels,
                num_levels=num_levels,
            ),
            encoder=DINOEncoder(num_levels=num_levels),
            proposals=ProposalHead(num_classes=80),
            decoder=DINODecoder(num_classes=80, num_levels=num_levels),
            denoising=DenoisingGenerator(num_classes=80),
        )


def model(in_channels: tuple[int, ...] = (512, 1024, 2048), num_levels: int = 4) -> DINO:
    with torch.device("meta"):
        return DINO(in_channels, num_levels)


@pytest.fixture
def published() -> dict[str, Tensor]:
    """Every tensor of a file, without its memory."""
    lines = [line.split("\t") for line in KEYS.read_text().splitlines()]
    shapes = {name: [int(n) for n in re.findall(r"\d+", shape)] for name, shape in lines}
    return BACKBONE | {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_every_name_and_shape(published: dict[str, Tensor]) -> None:
    own = model()
    converted, report = convert_weights(own, published)
    assert {name: t.shape for name, t in converted.items()} == {
        name: t.shape for name, t in own.state_dict().items() if name.startswith("head.")
    }
    assert report.source_elements == sum(tensor.numel() for tensor in published.values())
    unused = {entry.source: entry.note for entry in report.of("not used")}
    assert unused == dict.fromkeys(BACKBONE, "of another backbone: only the head is loaded")


def test_five_scales(published: dict[str, Tensor]) -> None:
    for name in [name for name in published if name.startswith("neck.extra_convs.0")]:
        fourth = name.replace("extra_convs.0", "convs.3")
        published[fourth] = published[name]
    published["neck.convs.3.conv.weight"] = torch.zeros(()).expand(256, 2048, 1, 1)
    samples = {"sampling_offsets": 8 * 5 * 4 * 2, "attention_weights": 8 * 5 * 4}
    for name, tensor in published.items():
        for part, size in samples.items():
            if part in name:
                published[name] = tensor[:1].expand(size, *tensor.shape[1:])
    published["level_embed"] = torch.zeros(5, 256)
    own = model((512, 1024, 2048, 2048), num_levels=5)
    converted, _ = convert_weights(own, published)
    assert {n for n in own.state_dict() if n.startswith("head.")} == set(converted)


def test_the_projections_of_other_channels_may_be_left_out(published: dict[str, Tensor]) -> None:
    own = model((384, 384, 384))
    with pytest.raises(WeightsError, match=r"projections\.0\.0\.weight: of shape \(256, 512, 1, 1"):
        convert_weights(own, published)
    allow = ["head.neck.projections.*.0.weight"]
    converted, _ = convert_weights(own, published, allow=allow)
    assert "head.neck.projections.0.1.weight" in converted


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("decoder.norm.weight", None, "decoder.norm.weight: missing"),
        ("encoder.layers.2.self_attn.attention_weights.bias", None, "is missing"),
        ("bbox_head.reg_branches.6.4.bias", (5,), "of shape (5,), in the model (4,)"),
        ("decoder.layers.6.norms.0.bias", (256,), "decoder.layers.6.norm1.bias"),
        ("pos_trans_fc.bias", (512,), "fit: pos_trans_fc.bias"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(
    published: dict[str, Tensor], name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    published.pop(name, None)
    if shape:
        published[name] = torch.zeros(()).expand(shape)
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(model(), published)
