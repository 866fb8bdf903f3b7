"""ATSS and GFL on the authors' backbone, of MMDetection 2 and 3.

As for Mask R-CNN (mmdetection.py), only names differ: tests/heads/test_dense_heads.py and
tests/d2/modeling/test_dense_detector.py show every convention against numbers of MMDetection.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..conversion import Conversion, Layout, Names, Origin
from ..files import WeightsError
from ..vit_steps import COMPUTED
from . import vit_comer

HEAD: dict[Names, Names] = {
    # Without the finest level: MMDetection's first is P3.
    **{f"neck.lateral_convs.{i}.conv": f"backbone.fpn_lateral{i + 3}" for i in range(3)},
    **{f"neck.fpn_convs.{i}.conv": f"backbone.fpn_output{i + 3}" for i in range(3)},
    "neck.fpn_convs.3.conv": "backbone.top_block.p6",
    "neck.fpn_convs.4.conv": "backbone.top_block.p7",
    **{
        f"bbox_head.{there}_convs.#.{part}": f"head.{here}_subnet.#.{name}"
        for there, here in (("cls", "cls"), ("reg", "bbox"))
        for part, name in (("conv", "conv"), ("gn", "norm"))
    },
    "bbox_head.scales.#.scale": "head.scales.#",
}
ATSS: dict[Names, Names] = HEAD | {
    "bbox_head.atss_cls": "head.cls_score",
    "bbox_head.atss_reg": "head.bbox_pred",
    "bbox_head.atss_centerness": "head.centerness",
}
GFL: dict[Names, Names] = HEAD | {
    "bbox_head.gfl_cls": "head.cls_score",
    "bbox_head.gfl_reg": "head.bbox_pred",
}
DISTANCES = "bbox_head.integral.project"


def drop_distances(conversion: Conversion) -> None:
    """The values whose distribution GFL predicts, if they are those that are computed here."""
    if DISTANCES in conversion.left:
        values = conversion.left[DISTANCES]
        if values.ndim != 1 or not torch.equal(values, torch.arange(len(values)).to(values)):
            raise WeightsError(f"'{DISTANCES}' is not 0, 1, 2, ... as this network computes it")
        conversion.drop(DISTANCES, COMPUTED)


def add_distances(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, next to what the backbone's way back adds."""
    bias = official["bbox_head.gfl_reg.bias"]
    values = torch.arange(len(bias) // 4, dtype=bias.dtype, device=bias.device)
    return vit_comer.complete(official) | {DISTANCES: values}


def layouts(heads: Mapping[Names, Names], requires: str) -> tuple[Layout, ...]:
    """With the backbone in both of its variants."""
    return tuple(
        vit_comer.layout(table, "backbone.", "backbone.bottom_up.", heads, requires=(requires,))
        for table in vit_comer.VARIANTS
    )


ORIGINS = (
    Origin(
        "gfl",
        "GFL on the authors' backbone",
        tuple(
            replace(
                layout,
                takes=(*layout.takes, DISTANCES),
                prepare=(*layout.prepare, drop_distances),
                complete=add_distances,
            )
            for layout in layouts(GFL, r"bbox_head\.gfl_.*")
        ),
        part="model",
    ),
    # After GFL, all of whose names here ATSS has too.
    Origin(
        "atss",
        "ATSS on the authors' backbone",
        layouts(ATSS, r"bbox_head\.atss_.*"),
        part="model",
    ),
)
