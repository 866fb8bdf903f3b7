"""EoMT: queries among the tokens of a plain ViT, whose last blocks decode them to masks."""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..layers.levels import tokens_to_map
from ..layers.linear import Linear
from ..network.vit import ViT, grid_of

UPSCALES = 2  # from stride 16 to 4
FIRST_ANNEALING, LAST_ANNEALING, ANNEALING = 1 / 6, 4 / 6, 1 / 6
POLY_POWER = 0.9


class EoMT(nn.Module):
    """An encoder-only mask transformer: no pyramid, no pixel decoder, no mask decoder.

    The queries join the tokens before the last ``num_blocks`` blocks. Before each of these, and
    after the last, queries are read as classes and masks. In training a query sees in such a block
    only the tokens inside its own mask; this is annealed away block by block, so that no masks are
    needed in evaluation.

    Source: arXiv 2503.19108, Sec. 3. The norm before the predictions is a new one: the pretrained
    ViT's final norm is not part of :class:`~comer_d2.network.vit.ViT`.

    Args:
        vit: the ViT, with global attention in the last ``num_blocks`` blocks.
        num_classes: classes K, without the no-object class.
        num_queries: queries Q.
        num_blocks: blocks that the queries go through (3 for S and B, 4 for L).

    Attributes:
        progress: share of the training that is done, in [0, 1], which masked attention is annealed
            by; whoever trains sets it.

    Raises:
        ValueError: if the ViT has too few blocks, windows in the last ones, or relative positions,
            which queries have none of; or if there are no classes or queries.
    """

    def __init__(
        self, vit: ViT, *, num_classes: int, num_queries: int = 200, num_blocks: int = 4
    ) -> None:
        super().__init__()
        if not 0 < num_blocks <= len(vit.blocks):
            raise ValueError(
                f"num_blocks must be 1 to {len(vit.blocks)}, the depth of the ViT, got {num_blocks}"
            )
        if num_classes < 1 or num_queries < 1:
            raise ValueError(
                f"num_classes and num_queries must be at least 1, got {num_classes} and {num_queries}"
            )
        first = len(vit.blocks) - num_blocks
        for i, block in enumerate(vit.blocks[first:], start=first):
            if block.attn.window_size or vit.computation["use_rel_pos_bias"]:
                raise ValueError(
                    f"queries join the last {num_blocks} blocks, which must be global and without "
                    f"relative positions: block {i} is not (window_size=0, use_rel_pos_bias=False)"
                )
        dim = vit.embed_dim
        self.vit = vit
        self.num_blocks = num_blocks
        self.progress = 0.0
        self.query = nn.Embedding(num_queries, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.class_embed = Linear(dim, num_classes + 1)
        self.mask_embed = nn.Sequential(
            Linear(dim, dim), nn.GELU(), Linear(dim, dim), nn.GELU(), Linear(dim, dim)
        )
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(UPSCALES)))

    @property
    def num_queries(self) -> int:
        """Objects that can be found in an image."""
        return self.query.num_embeddings

    def forward(self, image: Tensor) -> dict[str, object]:
        """Image -> classes and masks of the queries.

        Args:
            image: (B, C, h, w), normalised; sides divisible by 16.

        Returns:
            ``pred_logits`` (B, Q, K + 1), the last class for no object; ``pred_masks``
            (B, Q, h/4, w/4), logits; ``aux_outputs``: in training the same two before every block
            that the queries go through, else none.

        Raises:
            ValueError: for sides that do not divide by 16.
        """
        height, width = grid_of(image)
        x, rope = self.vit.tokens(image), self.vit.rope_of(height, width)
        first = len(self.vit.blocks) - self.num_blocks
        for block in self.vit.blocks[:first]:
            x = block(x, height, width, rope)
        x = torch.cat([self.query.weight.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        before = []
        for i, block in enumerate(self.vit.blocks[first:]):
            allowed = None
            if self.training:
                before.append(self.predict(x, height, width))
                share = masked_share(i, self.num_blocks, self.progress)
                if share > 0:
                    masks = before[-1]["pred_masks"]
                    allowed = self.allowed(masks, x.shape[1], height, width, share)
            x = block(x, height, width, rope, allowed)
        return {**self.predict(x, height, width), "aux_outputs": before}

    def predict(self, x: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Tokens (B, Q + P + height*width, D) -> classes (B, Q, K + 1) and masks, logits."""
        x = self.norm(x)
        query = x[:, : self.num_queries]
        feature = self.upscale(tokens_to_map(x[:, -height * width :], height, width))
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(query), feature)
        return {"pred_logits": self.class_embed(query), "pred_masks": masks}

    def allowed(
        self, masks: Tensor, num_tokens: int, height: int, width: int, share: float
    ) -> Tensor:
        """Which tokens see which: queries the tokens in their masks, everything else everything.

        Args:
            masks: (B, Q, 4*height, 4*width), logits.
            num_tokens: Q + P + height*width.
            height: rows of the map.
            width: columns of the map.
            share: of the queries, drawn at random, that are held to their masks.

        Returns:
            (B, 1, N, N) bool; no gradient.
        """
        inside = F.interpolate(
            masks.detach().float(), size=(height, width), mode="bilinear", align_corners=False
        )
        batch, queries = inside.shape[:2]
        free = torch.rand(batch, queries, 1, device=masks.device) >= share
        allowed = torch.ones(batch, num_tokens, num_tokens, dtype=torch.bool, device=masks.device)
        allowed[:, :queries, -height * width :] = (inside.flatten(2) > 0) | free
        return allowed[:, None]


class Upscale(nn.Module):
    """A map of twice the sides: transposed 2x2, GELU, depthwise 3x3, layer norm.

    Args:
        dim: channels D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, 2H, 2W)."""
        return self.norm(self.conv(F.gelu(self.up(x))))


def masked_share(index: int, num_blocks: int, progress: float) -> float:
    """Share of the queries that block ``index`` of ``num_blocks`` holds to their masks.

    All until the block's turn comes, then less and less, in a sixth of the training. The first
    block's turn is at a sixth of the training, the last one's at four sixths.

    Args:
        index: of the block, counted from the first that has queries.
        num_blocks: blocks that have queries.
        progress: share of the training that is done, in [0, 1].

    Returns:
        In [0, 1].
    """
    step = (LAST_ANNEALING - FIRST_ANNEALING) / max(num_blocks - 1, 1)
    done = (progress - FIRST_ANNEALING - index * step) / ANNEALING
    return (1 - min(max(done, 0.0), 1.0)) ** POLY_POWER
