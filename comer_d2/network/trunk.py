"""What ViT-CoMer asks of the network that it adapts: a plain ViT, or a hierarchical network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..layers.levels import Levels

# Runs a module on inputs; activations are kept, or computed again in the backward pass.
Call = Callable[..., Tensor]
BlockRanges = Sequence[Sequence[int]]
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
LARGEST_STRIDE = max(STRIDES.values())


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of a trunk, with one interaction around them.

    Args:
        first: number of the first block.
        last: number of the last block.
        dim: channels C of the trunk's tokens there.
        level: the level of the CNN tokens that they are added to, which has their stride: 0, 1 and 2
            are the strides 8, 16 and 32.
    """

    first: int
    last: int
    dim: int
    level: int


class Trunk(Protocol):
    """A network that ViT-CoMer runs stage by stage.

    Between stages it is tokens x, (B, P + N, C): P prefix tokens, then those of its map, row by row.

    Attributes:
        in_chans: channels of the image.
        embed_dim: channels D that the CNN branch and the outputs get.
        drop_path_rate: of the interactions' feed-forward branches, too.
        is_drawn: whether it has its initial weights; if not, ``draw_layers`` and ``draw_tables`` are
            called.
    """

    in_chans: int
    embed_dim: int
    drop_path_rate: float
    is_drawn: bool

    def draw_layers(self) -> None:
        """Draws the initial weights of linear layers and convolutions."""

    def draw_tables(self) -> None:
        """Draws those of tables and tokens."""

    def stages(self, interaction_indexes: BlockRanges | None) -> list[Stage]:
        """The stages of some (first, last) blocks each; of ``None``, the trunk's own.

        Raises:
            ValueError: for ranges that are not stages of this trunk.
        """

    def map_dims(self, features: str, num_stages: int) -> list[int]:
        """Channels C_i of :meth:`maps`, four of them, or none for ``"none"``.

        Raises:
            ValueError: for features that this trunk does not have.
        """

    def start(self, image: Tensor, call: Call) -> Tensor:
        """Image (B, in_chans, h, w), sides divisible by 32 -> x in front of the first stage.

        Blocks that are in no stage are run by ``call``.
        """

    def enter(self, x: Tensor, stage: Stage, levels: Levels) -> Tensor:
        """x after the stage before -> in front of a stage's blocks, in the size of its level."""

    def blocks_of(self, stage: Stage) -> Sequence[nn.Module]:
        """The blocks of a stage."""

    def run_blocks(
        self, x: Tensor, call: Call, *, stage: Stage, size: tuple[int, int], rope: Tensor | None
    ) -> Tensor:
        """x in front of a stage's blocks, its map of ``size`` -> x after them, each run by ``call``."""

    def rope_of(self, height: int, width: int) -> Tensor | None:
        """Rotary positions of a map of stride 16, shared by all blocks, or ``None``."""

    def maps(
        self,
        features: str,
        x_first: Tensor,
        x_after: Sequence[tuple[Stage, Tensor]],
        levels: Levels,
    ) -> list[Tensor]:
        """What is added to the four outputs.

        Args:
            features: as ``vit_features`` of :class:`~comer_d2.network.ViTCoMerNet`; not ``"none"``.
            x_first: x of :meth:`start`.
            x_after: every stage, and x after it.
            levels: of the CNN tokens.

        Returns:
            Four maps (B, C_i, h_i, w_i), of any size.
        """


def check_cover(interaction_indexes: BlockRanges, blocks: range, of: str) -> None:
    """Raises ValueError unless ranges of blocks cover all of some blocks, once each and in order."""
    given = [i for first, last in interaction_indexes for i in range(first, last + 1)]
    if given != list(blocks):
        raise ValueError(
            f"interaction_indexes {[tuple(p) for p in interaction_indexes]} must cover the blocks "
            f"{blocks[0]}..{blocks[-1]} once each and in order ({of})"
        )


def check_image(image: Tensor, in_chans: int) -> None:
    """Raises ValueError if an image batch is not (B, in_chans, h, w) with h, w > 0."""
    if image.ndim != 4 or image.shape[1] != in_chans or 0 in image.shape[-2:]:
        raise ValueError(
            f"image must have shape (B, {in_chans}, h, w) with h, w > 0, got {tuple(image.shape)}"
        )
