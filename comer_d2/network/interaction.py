"""One interaction: MRFP, CTI to V, ViT blocks, CTI to C."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers.deform_attn import MSDeformAttn
from ..layers.drop_path import DropPath
from ..layers.levels import Levels, add_rows, map_to_tokens, without_prefix
from ..layers.linear import Linear
from ..layers.narrow import installed, installed_in
from ..layers.norm import LayerNorm
from ..layers.token_conv import LevelDepthwiseConv, TokenDepthwiseConv
from .trunk import Call, Stage
from .vit import LAYER_NORM_EPS

NUM_LEVELS = 3


class MRFP(nn.Module):
    """Multi-Receptive Field Feature Pyramid: depthwise convolutions of several sizes on every level.

    Source: Sec. 3.2 of arXiv 2403.07392. As in the released models, and unlike the paper, each
    level has a normalisation and a GELU of its own after its convolutions, and there is no
    residual.

    Args:
        dim: channels D of a token.
        hidden_dim: channels between the two linear layers.
        kernel_sizes: odd sides of the kernels; each gets an equal share of ``hidden_dim``.
        norm_layer: channels -> normalisation module.

    Raises:
        ValueError: if ``hidden_dim`` cannot be shared equally, or a kernel size is even, or there is
            none.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        kernel_sizes: Sequence[int],
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        if not kernel_sizes:
            raise ValueError("mrfp_kernel_sizes is empty: give some, or use_mrfp=False for no MRFP")
        share, rest = divmod(hidden_dim, len(kernel_sizes))
        if rest or not share:
            raise ValueError(
                f"MRFP's {hidden_dim} hidden channels must be a multiple of its "
                f"{len(kernel_sizes)} kernel sizes {tuple(kernel_sizes)}: change mrfp_ratio or "
                "mrfp_kernel_sizes"
            )
        if any(k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f"mrfp_kernel_sizes must be odd, got {tuple(kernel_sizes)}")
        self.fc1 = Linear(dim, hidden_dim)
        self.convs = LevelDepthwiseConv(hidden_dim, kernel_sizes, NUM_LEVELS)
        self.norms = nn.ModuleList(norm_layer(hidden_dim) for _ in range(NUM_LEVELS))
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, c: Tensor, levels: Levels) -> Tensor:
        """CNN tokens (B, S, D) -> (B, S, D)."""
        maps = levels.maps(self.convs(self.fc1(c), levels))
        maps = [norm(x) for x, norm in zip(maps, self.norms, strict=True)]
        return self.fc2(F.gelu(F.gelu(levels.merge(maps))))


class ConvFFN(nn.Module):
    """A feed-forward network with one depthwise 3x3 convolution, shared by the levels.

    Args:
        dim: channels D of a token.
        hidden_dim: channels between the two linear layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.dwconv = TokenDepthwiseConv(hidden_dim, 3)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, c: Tensor, levels: Levels) -> Tensor:
        """CNN tokens (B, S, D) -> (B, S, D)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(c), levels)))


class FFNBranch(nn.Module):
    """The residual branch ``c + drop_path(ConvFFN(LN(c)))``.

    Args:
        dim: channels D of a token.
        hidden_dim: hidden channels of the ConvFFN.
        drop_path: probability of dropping the branch, per sample.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.ffn = ConvFFN(dim, hidden_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, levels: Levels) -> Tensor:
        """CNN tokens (B, S, D) -> (B, S, D)."""
        return c + self.drop_path(self.ffn(self.norm(c), levels))


class CTIToV(nn.Module):
    """CNN-Transformer bidirectional fusion, CNN to ViT.

    The CNN tokens attend to themselves across levels; all levels are then brought to the map of the
    trunk's tokens and added to these through a gate.

    Source: Sec. 3.3 of arXiv 2403.07392. As in the released models, the ViT tokens stay in the CNN
    tokens' level of their stride afterwards.

    Args:
        dim: channels D of a CNN token.
        trunk_dim: channels C of a token of the trunk; where it is not ``dim``, what is added is
            projected.
        level: the CNN tokens' level that has the stride of the trunk's tokens.
        attn: the deformable attention.
        ffn: the residual branch after it, if any.
        gate_init: initial value of the gate; 0 leaves the pretrained trunk untouched at the start.
    """

    def __init__(
        self,
        dim: int,
        trunk_dim: int,
        level: int,
        attn: MSDeformAttn,
        ffn: FFNBranch | None,
        gate_init: float,
    ) -> None:
        super().__init__()
        self.level = level
        self.query_norm = layer_norm(dim)
        self.feat_norm = layer_norm(dim)
        self.attn = attn
        self.ffn = ffn
        self.to_trunk = projection(dim, trunk_dim)
        self.gamma = nn.Parameter(torch.full((trunk_dim,), float(gate_init)))

    def forward(self, x: Tensor, c: Tensor, levels: Levels) -> Tensor:
        """Trunk tokens x (B, P + N, C), CNN tokens c (B, S, D) with x added -> new x.

        The P prefix tokens stay as they are.
        """
        points = levels.reference_points(c.device, c.dtype)
        o = self.attn(self.query_norm(c), points, self.feat_norm(c), levels)
        if self.ffn is not None:
            o = self.ffn(o, levels)
        fused = self.to_trunk(map_to_tokens(levels.fuse(o, self.level)))
        return add_rows(x, fused * self.gamma.to(fused.dtype), x.shape[1] - fused.shape[1])


class FeatureInteraction(nn.Module):
    """The CNN tokens attend to themselves across levels, then go through a feed-forward branch.

    As in the released models the residual is around the *normed* tokens, and two norms follow each
    other.

    Args:
        dim: channels D of a token.
        attn: the deformable attention.
        ffn: the residual branch after it, if any.
    """

    def __init__(self, dim: int, attn: MSDeformAttn, ffn: FFNBranch | None) -> None:
        super().__init__()
        self.outer_query_norm = layer_norm(dim)
        self.outer_feat_norm = layer_norm(dim)
        self.query_norm = layer_norm(dim)
        self.feat_norm = layer_norm(dim)
        self.attn = attn
        self.ffn = ffn

    def forward(self, c: Tensor, levels: Levels) -> Tensor:
        """CNN tokens (B, S, D) -> (B, S, D)."""
        query = self.outer_query_norm(c)
        feat = self.outer_feat_norm(c)
        points = levels.reference_points(c.device, c.dtype)
        c = query + self.attn(self.query_norm(query), points, self.feat_norm(feat), levels)
        return c if self.ffn is None else self.ffn(c, levels)


class CTIToC(nn.Module):
    """CNN-Transformer bidirectional fusion, ViT to CNN.

    Source: Sec. 3.3 of arXiv 2403.07392. The blocks that the released models append to the last
    interaction (not in the paper's figure) have another feed-forward branch in front.

    Args:
        level: the CNN tokens' level that has the stride of the trunk's tokens.
        ffn: the feed-forward branch in front, if any.
        feature_interaction: the CNN tokens' attention to themselves, if any.
    """

    def __init__(
        self, level: int, ffn: FFNBranch | None, feature_interaction: FeatureInteraction | None
    ) -> None:
        super().__init__()
        self.level = level
        self.ffn = ffn
        self.feature_interaction = feature_interaction

    def forward(self, c: Tensor, x: Tensor, levels: Levels) -> Tensor:
        """CNN tokens c (B, S, D) and the trunk's, projected, x (B, N, D) -> new c (B, S, D)."""
        c = levels.add(c, x, self.level)
        if self.ffn is not None:
            c = self.ffn(c, levels)
        if self.feature_interaction is not None:
            c = self.feature_interaction(c, levels)
        return c


class Interaction(nn.Module):
    """What surrounds the blocks of one stage of the trunk.

    Source: Figure 3 of arXiv 2403.07392. A plain ViT's tokens belong to the CNN tokens' stride-16
    level; those of a hierarchical trunk to the level of their own stride, as the authors answered in
    issue 11 of their repository.

    Args:
        dim: channels D of a CNN token.
        stage: the stage of the trunk.
        mrfp: the multi-receptive field pyramid, if any.
        cti_to_v: CNN to ViT, before the blocks, if any.
        cti_to_c: ViT to CNN, after the blocks, if any.
        extra_cti: further CTI-to-C blocks in sequence; may be empty.
        use_act_checkpoint: recompute activations in the backward pass instead of keeping them, part
            by part.
    """

    def __init__(
        self,
        dim: int,
        stage: Stage,
        mrfp: MRFP | None,
        cti_to_v: CTIToV | None,
        cti_to_c: CTIToC | None,
        extra_cti: Sequence[CTIToC] = (),
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.mrfp = mrfp
        self.cti_to_v = cti_to_v
        self.cti_to_c = cti_to_c
        self.extra_cti = nn.ModuleList(extra_cti)
        reads_trunk = cti_to_v is not None or cti_to_c is not None or len(extra_cti) > 0
        self.to_cnn = projection(stage.dim, dim) if reads_trunk else nn.Identity()
        self.use_act_checkpoint = use_act_checkpoint

    def forward(
        self, x: Tensor, c: Tensor, levels: Levels, blocks: Callable[[Tensor, Call], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Runs the blocks and what surrounds them; the P prefix tokens only take part in the blocks.

        Args:
            x: (B, P + N, C) tokens of the trunk, N those of the stage's level.
            c: (B, S, D) CNN tokens.
            levels: of the CNN tokens.
            blocks: runs the stage's blocks on x, each by the given call.

        Returns:
            New x and new c of the same shapes.
        """
        count = levels.sizes[self.stage.level]
        if self.mrfp is not None:
            c = self.run(self.mrfp, c, levels)
        if self.cti_to_v is not None:
            c = levels.add(c, self.to_cnn(without_prefix(x, count)), self.stage.level)
            x = self.run(self.cti_to_v, x, c, levels)
        x = blocks(x, self.run)
        x_for_cnn = self.to_cnn(without_prefix(x, count))
        if self.cti_to_c is not None:
            c = self.run(self.cti_to_c, c, x_for_cnn, levels)
        for cti in self.extra_cti:
            c = self.run(cti, c, x_for_cnn, levels)
        return x, c

    def run(self, module: nn.Module, *inputs: object) -> Tensor:
        """Calls a module, under activation checkpointing if that is on."""
        return recomputed(module, *inputs) if self.use_act_checkpoint else module(*inputs)


def recomputed(module: nn.Module, *inputs: object) -> Tensor:
    """Calls a module whose activations are recomputed in the backward pass, if there is one."""
    return recomputed_together([module], module, *inputs)


def recomputed_together(
    modules: Sequence[nn.Module], call: Callable[..., Any], *inputs: object
) -> Any:
    """Calls a function whose activations are recomputed in the backward pass, if there is one.

    Args:
        modules: what the function runs.
        call: the function.
        inputs: its arguments.
    """
    if not torch.is_grad_enabled():
        return call(*inputs)

    weights = installed_in(modules)

    @contextmanager
    def again() -> Iterator[None]:
        with installed(weights), frozen_running_statistics(modules):
            yield

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), again()

    return checkpoint(call, *inputs, use_reentrant=False, context_fn=contexts)


def projection(dim: int, new_dim: int) -> nn.Module:
    """A linear layer where widths differ, nothing where they are the same."""
    return nn.Identity() if dim == new_dim else Linear(dim, new_dim)


@contextmanager
def frozen_running_statistics(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keeps a recomputed forward from moving batch-norm statistics a second time.

    Args:
        modules: whose batch norms hold still while the context is open.
    """
    norms = [
        m
        for module in modules
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum = 0.0
        if m.num_batches_tracked is not None:
            m.num_batches_tracked = m.num_batches_tracked.clone()
    try:
        yield
    finally:
        for m, (momentum, tracked) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, tracked


def layer_norm(dim: int) -> LayerNorm:
    """A layer norm with the epsilon of the released models."""
    return LayerNorm(dim, eps=LAYER_NORM_EPS)
