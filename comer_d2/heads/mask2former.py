"""Mask2Former's head: pixel decoder and mask decoder."""

from typing import Any

from torch import Tensor, nn

from .mask_decoder import MaskedTransformerDecoder
from .pixel_decoder import MSDeformAttnPixelDecoder


class Mask2FormerHead(nn.Module):
    """Backbone features -> classes and masks of all queries.

    Weights of the official project: :func:`comer_d2.weights.load_weights`.

    Source: arXiv 2112.01527.

    Args:
        pixel_decoder: the pixel decoder.
        predictor: the mask decoder.
    """

    def __init__(
        self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MaskedTransformerDecoder
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @property
    def num_queries(self) -> int:
        """Objects that can be found in an image."""
        return self.predictor.query_feat.num_embeddings

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Name -> (B, C_i, H_i, W_i) -> the mask decoder's ``pred_logits``, ``pred_masks``, ``aux_outputs``."""
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps[: self.predictor.num_levels], mask_features)
