"""Semantic segmentation by a head that classifies pixels."""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from detectron2.modeling import SemanticSegmentor as Detectron2Segmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from .images import batch_images, prepare_images
from .semantic_tta import SemanticViews


class SemanticSegmentor(Detectron2Segmentor):
    """Detectron2's SemanticSegmentor, which can also predict from several views of an image.

    Args:
        backbone: a Detectron2 backbone.
        sem_seg_head: (features, labels) -> (logits at the padded image's size, losses); such as
            :class:`comer_d2.heads.upernet.UPerNetHead`.
        pixel_mean: per channel.
        pixel_std: per channel.
        views: of the image, for prediction; None: the image as it is.
        input_format: the order of channels that the model is trained on.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        views: SemanticViews | None = None,
        input_format: str = "RGB",
    ) -> None:
        super().__init__(
            backbone=backbone,
            sem_seg_head=sem_seg_head,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.views = views
        self.input_format = input_format

    def loss_scales(self, batches: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
        """For gradient accumulation: the losses are means over the labelled pixels of a batch."""
        ignore = self.sem_seg_head.ignore_value
        pixels = [
            sum(int((record["sem_seg"] != ignore).sum()) for record in batch) for batch in batches
        ]
        mean = max(sum(pixels), 1) / len(pixels)
        return [{"loss_": max(count, 1) / mean} for count in pixels]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Images and labels -> losses in training; images -> ``sem_seg`` otherwise.

        Args:
            batched_inputs: `image` (3, h, w); in training `sem_seg` (h, w); otherwise optionally
                `height` and `width` of the output.

        Returns:
            A dict of losses, or for every image a dict with `sem_seg`, (K, height, width): logits,
            or probabilities with `views`.
        """
        if self.training:
            images = self._prepare(batched_inputs)
            labels = [record["sem_seg"].to(self.device) for record in batched_inputs]
            targets = batch_images(labels, self.backbone, self.sem_seg_head.ignore_value).tensor
            return self.sem_seg_head(self.backbone(images.tensor), targets)[1]
        if self.views is not None:
            return self.views(self._predict, batched_inputs, softmax=True)
        return self._predict(batched_inputs)

    def _predict(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        images = self._prepare(batched_inputs)
        logits, _ = self.sem_seg_head(self.backbone(images.tensor), None)
        results = []
        for of_image, record, size in zip(logits, batched_inputs, images.image_sizes, strict=True):
            output_size = record.get("height", size[0]), record.get("width", size[1])
            results.append({"sem_seg": sem_seg_postprocess(of_image, size, *output_size)})
        return results

    def _prepare(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        return prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)
