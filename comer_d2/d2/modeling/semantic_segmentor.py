"""Semantic segmentation by a head that classifies pixels."""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from detectron2.modeling import SemanticSegmentor as Detectron2Segmentor
from torch import nn

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
        input_format: the channels' order the model is trained on; for the record.
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

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Images and labels -> losses in training; images -> ``sem_seg`` otherwise.

        Args:
            batched_inputs: `image` (3, h, w); in training `sem_seg` (h, w); otherwise optionally
                `height` and `width` of the output.

        Returns:
            A dict of losses, or for every image a dict with `sem_seg`, (K, height, width): logits,
            or probabilities with `views`.
        """
        if self.training or self.views is None:
            return super().forward(batched_inputs)
        return self.views(super().forward, batched_inputs, softmax=True)
