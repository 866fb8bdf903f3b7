"""What padding and the other images of a batch may change, with the real network and head.

A batch is padded with zeros (the mean colour) to its largest height and width, and those to a
multiple of 32. Within it images are independent: a result is that of the image alone, padded as the
batch is. It is not that of the image alone with less padding, nor can it be: the ViT's blocks attend
to all patches, position encodings and reference points are fractions of the padded size, group norms
take the mean over it. So results are the same whenever the padded sizes are.
"""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling import GeneralizedRCNN as Detectron2GeneralizedRCNN
from torch import Tensor, nn

from comer_d2.d2.errors import UserError
from comer_d2.d2.modeling.backbone import ViTCoMer
from comer_d2.d2.modeling.generalized_rcnn import GeneralizedRCNN
from comer_d2.d2.modeling.images import refuse_to_cut
from comer_d2.d2.modeling.mask2former import Mask2Former
from comer_d2.d2.modeling.semantic_segmentor import SemanticSegmentor
from comer_d2.heads.criterion import SetCriterion
from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import MaskedTransformerDecoder
from comer_d2.heads.matcher import HungarianMatcher
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
from comer_d2.heads.upernet import UPerNetHead
from tests.networks import make_network

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
NUM_CLASSES = 4


def backbone() -> ViTCoMer:
    return make_network(
        ViTCoMer,
        embed_dim=32,
        depth=2,
        num_heads=2,
        window_size=0,
        window_block_indexes=[],
        pretrain_img_size=64,
        stem_width=8,
        interaction_indexes=[[0, 0], [1, 1]],
        deform_num_heads=2,
        num_extra_cti=1,
        gate_init=0.5,
        norm="BN",
    )


@pytest.fixture(scope="module")
def mask2former() -> Mask2Former:
    torch.manual_seed(0)
    pixel_decoder = MSDeformAttnPixelDecoder(
        in_channels=[32] * 4, conv_dim=32, mask_dim=16, num_heads=4, num_layers=1, norm_groups=8
    )
    predictor = MaskedTransformerDecoder(
        in_channels=32,
        num_classes=NUM_CLASSES,
        hidden_dim=32,
        mask_dim=16,
        num_queries=8,
        num_heads=4,
        num_layers=3,
        ffn_dim=32,
    )
    # As if trained: queries that look where their masks are, and classes that are not all alike.
    nn.init.normal_(predictor.class_embed.weight, std=1.0)
    nn.init.constant_(predictor.class_embed.bias[-1:], -9.0)
    model = Mask2Former(
        backbone=backbone(),
        sem_seg_head=Mask2FormerHead(pixel_decoder, predictor),
        criterion=SetCriterion(
            num_classes=NUM_CLASSES, matcher=HungarianMatcher(num_points=256), num_points=256
        ),
        pixel_mean=MEAN,
        pixel_std=STD,
        stuff_classes=[3],
        score_threshold=0.0,
        overlap_threshold=0.0,
    )
    return model.eval()


@pytest.fixture(scope="module")
def upernet() -> SemanticSegmentor:
    torch.manual_seed(0)
    head = UPerNetHead(in_channels=[32] * 4, num_classes=3, channels=16, auxiliary_channels=8)
    model = SemanticSegmentor(
        backbone=backbone(), sem_seg_head=head, pixel_mean=MEAN, pixel_std=STD
    )
    return model.eval()


def image(height: int, width: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    # Blobs, so that masks have a shape.
    blobs = torch.rand(1, 3, 5, 7, generator=generator) * 255
    return {"image": F.interpolate(blobs, size=(height, width), mode="bicubic")[0].clamp(0, 255)}


def predict(model: nn.Module, *records: dict[str, Any]) -> list[dict[str, Any]]:
    with torch.no_grad():
        return model(list(records))


def padded_by_hand(record: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The image on a page of the mean colour."""
    page = torch.tensor(MEAN)[:, None, None].repeat(1, height, width)
    page[:, : record["image"].shape[1], : record["image"].shape[2]] = record["image"]
    return {"image": page}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal up to rounding: a batch is summed in another order, and attention has a threshold."""
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-3)
    if "panoptic_seg" not in expected:
        return
    ids, info = found["panoptic_seg"]
    expected_ids, expected_info = expected["panoptic_seg"]
    assert expected_info
    assert [s["category_id"] for s in info] == [s["category_id"] for s in expected_info]
    assert (ids != expected_ids).float().mean() < 0.01
    one, other = found["instances"], expected["instances"]
    assert len(one) == len(other) > 0
    torch.testing.assert_close(
        one.scores.sort().values, other.scores.sort().values, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", ["mask2former", "upernet"])
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 160), (40, 160), (64, 135)],  # all padded to 64 x 160 with or without the others
        [(160, 64), (129, 50)],
        [(96, 96), (96, 96)],
    ],
)
def test_a_batch_of_one_padded_size(
    name: str, sizes: list[tuple[int, int]], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    records = [image(*size, seed) for seed, size in enumerate(sizes)]
    for record, found in zip(records, predict(model, *records), strict=True):
        (expected,) = predict(model, record)
        assert found["sem_seg"].shape[1:] == record["image"].shape[1:]
        same(found, expected)


@pytest.mark.parametrize("name", ["mask2former", "upernet"])
def test_an_image_beside_a_larger_one(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    small, large = image(50, 90, 1), image(96, 128, 2)
    found, of_large = predict(model, small, large)
    same(of_large, predict(model, large)[0])  # it is not padded at all
    (expected,) = predict(model, padded_by_hand(small, 96, 128))
    torch.testing.assert_close(
        found["sem_seg"], expected["sem_seg"][:, :50, :90], rtol=1e-3, atol=1e-3
    )
    assert found["sem_seg"].shape[1:] == (50, 90)


def test_the_other_images_change_no_loss_but_by_their_number(mask2former: Mask2Former) -> None:
    """Mask losses are sums over a batch's objects divided by their number, images padded alike."""
    records = []
    for seed, (height, width) in enumerate([(64, 96), (50, 96)]):
        labels = torch.full((height, width), 255)
        labels[5:30, 10:60], labels[30:, 20:] = seed, 2
        records.append({**image(height, width, seed), "sem_seg": labels})
    # Randomness aside: every mask is compared at the same grid of points.
    axis = (torch.arange(16) + 0.5) / 16
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)

    def rand(shape: tuple[int, ...], *, device: torch.device) -> Tensor:
        repeats = -(-shape[1] // grid.shape[1])
        return grid.repeat(shape[0], repeats, 1)[:, : shape[1]]

    mask2former.criterion.rand = mask2former.criterion.matcher.rand = rand
    for module in mask2former.modules():  # losses of all predictions, with norms as in evaluation
        module.training = module in (mask2former, mask2former.sem_seg_head.predictor)
    try:
        with torch.no_grad():
            together = mask2former(records)
            alone = [mask2former([record]) for record in records]
    finally:
        mask2former.eval()
        mask2former.criterion.rand = mask2former.criterion.matcher.rand = torch.rand
    for key in ("loss_mask", "loss_dice", "loss_mask_0", "loss_dice_2"):
        expected = sum(losses[key] for losses in alone) / 2  # two objects in each
        torch.testing.assert_close(together[key], expected, rtol=1e-3, atol=1e-3)


class SquareBackbone(Backbone):
    """Keeps the batch it is given; asks for squares of 64 pixels."""

    size_divisibility = 32
    padding_constraints: ClassVar = {"size_divisibility": 32, "square_size": 64}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen = image
        return {"res2": F.avg_pool2d(image, 4)}


class PixelHead(nn.Module):
    """Keeps the labels it is given; its logits are the image's channels."""

    ignore_value = 255

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.targets = targets
        return F.interpolate(features["res2"], scale_factor=4), {"loss_sem_seg": torch.zeros(())}


def on_squares(cls: type) -> nn.Module:
    """A meta-architecture whose heads are not asked."""
    parts: dict[type, dict[str, Any]] = {
        SemanticSegmentor: {"sem_seg_head": PixelHead()},
        Mask2Former: {"sem_seg_head": nn.Identity(), "criterion": nn.Identity()},
    }
    of_rcnn = {"proposal_generator": nn.Identity(), "roi_heads": nn.Identity()}
    arguments = parts.get(cls, of_rcnn)
    return cls(backbone=SquareBackbone(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, **arguments)


@pytest.mark.parametrize("cls", [GeneralizedRCNN, SemanticSegmentor, Mask2Former])
@pytest.mark.parametrize(
    ("sizes", "side"), [([(50, 61)], 64), ([(90, 120)], 128), ([(40, 64), (97, 30)], 128)]
)
def test_images_larger_than_the_square_are_not_cut(
    cls: type, sizes: list[tuple[int, int]], side: int
) -> None:
    model = on_squares(cls)
    records = [{"image": torch.rand(3, *size)} for size in sizes]
    prepare = model.preprocess_image if cls is GeneralizedRCNN else model._prepare
    images = prepare(records)
    assert images.tensor.shape == (len(sizes), 3, side, side)
    for record, padded, size in zip(records, images.tensor, sizes):
        assert torch.equal(padded[:, : size[0], : size[1]], record["image"])
        assert padded.count_nonzero() == record["image"].count_nonzero()


def test_labels_are_padded_as_their_images_are() -> None:
    model = on_squares(SemanticSegmentor)
    labels = torch.randint(0, 3, (90, 120))
    model([{"image": torch.rand(3, 90, 120), "sem_seg": labels}])
    seen = model.sem_seg_head.targets
    assert seen.shape[-2:] == model.backbone.seen.shape[-2:] == (128, 128)
    assert torch.equal(seen[0, :90, :120], labels)
    assert (seen == 255).sum() == 128 * 128 - 90 * 120


def test_predictions_cover_an_image_larger_than_the_square() -> None:
    model = on_squares(SemanticSegmentor).eval()
    image = torch.rand(3, 90, 120)
    (result,) = model([{"image": image}])
    expected = F.interpolate(F.avg_pool2d(image[None, :, :88], 4), scale_factor=4)[0]
    torch.testing.assert_close(result["sem_seg"][:, :88], expected)


def test_detectron2s_own_models_refuse_what_they_would_cut() -> None:
    model = on_squares(Detectron2GeneralizedRCNN).eval()
    refuse_to_cut(model)
    record = {"image": torch.rand(3, 90, 120), "file_name": "a.jpg"}
    with pytest.raises(UserError, match=r"'a\.jpg' has 120 x 90 pixels, more than square_pad=64"):
        model([record])
