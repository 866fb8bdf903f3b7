"""DINO's head: from a backbone's maps to classes and boxes of all queries."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...layers.levels import Levels
from .canvas import Canvas
from .decoder import DINODecoder
from .denoising import DenoisingGenerator, DenoisingQueries
from .encoder import DINOEncoder
from .neck import ChannelMapper
from .predictors import Prediction
from .proposals import ProposalHead


class DINOOutputs(NamedTuple):
    """What the criterion asks for, and what goes on from here.

    Attributes:
        layers: predictions of the matching queries, of every decoder layer in training, otherwise
            of the last one alone.
        proposals: the encoder's, from which the queries start.
        denoised: predictions of the denoising queries, of every layer; empty without targets.
        denoising: these queries; None without targets.
        memory: (B, S, D), the encoder's tokens.
        canvas: where they are.
    """

    layers: list[Prediction]
    proposals: Prediction
    denoised: list[Prediction]
    denoising: DenoisingQueries | None
    memory: Tensor
    canvas: Canvas


class DINOHead(nn.Module):
    """Neck, encoder, proposals, decoder and, in training, denoising.

    Source: arXiv 2203.03605.

    Args:
        neck: backbone maps -> maps of one width.
        encoder: of their tokens.
        proposals: selects the queries' boxes among the tokens.
        decoder: of the queries.
        denoising: makes extra queries in training.
        num_queries: queries Q; on images of fewer tokens as many as there are.
        dim: channels D.

    Raises:
        ValueError: without queries, nothing would be learnt; or the parts do not fit together.
    """

    def __init__(
        self,
        *,
        neck: ChannelMapper,
        encoder: DINOEncoder,
        proposals: ProposalHead,
        decoder: DINODecoder,
        denoising: DenoisingGenerator,
        num_queries: int = 900,
        dim: int = 256,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        alike = {
            "num_levels": {"neck": neck, "encoder": encoder, "decoder": decoder},
            "num_classes": {"proposals": proposals, "decoder": decoder, "denoising": denoising},
        }
        for argument, parts in alike.items():
            values = {name: getattr(part, argument) for name, part in parts.items()}
            if len(set(values.values())) > 1:
                raise ValueError(f"{argument} must be the same in all parts, got {values}")
        self.neck = neck
        self.encoder = encoder
        self.proposals = proposals
        self.decoder = decoder
        self.denoising = denoising
        self.num_queries = num_queries
        self.query_embed = nn.Embedding(num_queries, dim)

    def forward(
        self,
        features: Mapping[str, Tensor],
        padded_size: Sequence[int],
        image_sizes: Sequence[Sequence[int]] | None = None,
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> DINOOutputs:
        """Detects.

        Args:
            features: name -> (B, C_i, H_i, W_i), at least those that the neck reads.
            padded_size: (H, W) of the batch in pixels.
            image_sizes: (h, w) of every image in pixels, without padding; None: they have none.
            targets: in training, of every image ``labels`` (n,) and ``boxes`` (n, 4) as
                (cx, cy, w, h); [0, 1] is the image.
        """
        maps = self.neck(features)
        levels = Levels(tuple(tuple(m.shape[-2:]) for m in maps))
        x = levels.merge(maps)
        canvas = Canvas.around(levels, padded_size, image_sizes, x.device)
        memory = self.encoder(x, canvas)
        proposals = self.proposals(memory, canvas, self.num_queries)
        boxes = proposals.boxes.detach()
        contents = self.query_embed.weight[: boxes.shape[1]].expand(x.shape[0], -1, -1)
        if targets is None:
            layers = self.decoder(contents, boxes, memory, canvas)
            return DINOOutputs(layers, proposals, [], None, memory, canvas)
        extra = self.denoising(targets)
        predictions = self.decoder(
            torch.cat([extra.contents, contents], dim=1),
            torch.cat([extra.boxes, boxes], dim=1),
            memory,
            canvas,
            extra.allowed(boxes.shape[1]),
        )
        number = extra.boxes.shape[1]
        denoised, layers = (
            [Prediction(logits[:, part], boxes[:, part]) for logits, boxes in predictions]
            for part in (slice(number), slice(number, None))
        )
        return DINOOutputs(layers, proposals, denoised, extra, memory, canvas)
