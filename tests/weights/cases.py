"""Every family as a small timm model with random weights, the network for it, and their features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from comer_d2.network import ViT, ViTCoMerNet
from tests.weights import originals

SIDE = 64  # the pretraining's images: 4 x 4 patches
OTHER = (48, 96)
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
SMALL = dict(embed_dim=48, depth=2, num_heads=3)


@dataclass
class Case:
    """A family by its timm model, small.

    Args:
        timm_id: name of the model.
        net: what the network needs for it.
        layouts: the ways its weights are written, beside timm's.
        timm: further arguments of the timm model.
        family: where names cannot tell it.
    """

    timm_id: str
    net: Mapping[str, Any] = field(default_factory=dict)
    layouts: tuple[Callable[[Mapping[str, Tensor]], dict[str, Any]], ...] = ()
    timm: Mapping[str, Any] = field(default_factory=dict)
    family: str | None = None


DINOV3 = dict(use_abs_pos=False, rope="dinov3", layer_norm_eps=1e-5, num_prefix_tokens=5)
EVA02 = dict(rope="eva02", qkv_bias="qv", mlp="swiglu", mlp_ratio=8 / 3, num_prefix_tokens=1)
CLIP = dict(layer_norm_eps=1e-5, pre_norm_eps=1e-5, num_prefix_tokens=1)
PE = CLIP | dict(rope="pe")
BEIT = dict(use_abs_pos=False, use_rel_pos_bias=True, qkv_bias="qv", num_prefix_tokens=1)
SWIGLU = dict(mlp="swiglu", mlp_ratio=4)

CASES = {
    "deit": Case("deit_small_patch16_224", dict(num_prefix_tokens=1), (originals.deit,)),
    "deit-distilled": Case(
        "deit_small_distilled_patch16_224", dict(num_prefix_tokens=2), (originals.deit,)
    ),
    "augreg-224": Case("vit_base_patch16_224", dict(num_prefix_tokens=1)),
    "augreg-384": Case("vit_base_patch16_384", dict(num_prefix_tokens=1)),
    "without-qkv-bias": Case("vit_base_patch16_224_miil", dict(num_prefix_tokens=1)),
    "mae": Case("vit_base_patch16_224", dict(num_prefix_tokens=1), (originals.mae,)),
    "dinov2": Case(
        "vit_base_patch14_dinov2",
        dict(num_prefix_tokens=1),
        (originals.dinov2, originals.dinov2_transformers),
    ),
    "dinov2-registers": Case(
        "vit_base_patch14_reg4_dinov2",
        dict(num_prefix_tokens=5),
        (originals.dinov2, originals.dinov2_transformers),
    ),
    "dinov2-giant": Case(
        "vit_giant_patch14_dinov2",
        dict(num_prefix_tokens=1, **SWIGLU),
        (originals.dinov2, originals.dinov2_transformers),
        dict(mlp_ratio=8),
    ),
    "deit3": Case("deit3_base_patch16_224", dict(num_prefix_tokens=1)),
    "deit3-authors": Case(
        "deit3_base_patch16_224", dict(num_prefix_tokens=1), (originals.deit3,), family="deit3"
    ),
    "rope-vit": Case(
        "vit_base_patch16_rope_224", dict(use_abs_pos=False, rope="rope-vit", num_prefix_tokens=1)
    ),
    "rope-vit-ape": Case(
        "vit_base_patch16_rope_ape_224",
        dict(rope="rope-vit", num_prefix_tokens=1),
        timm=dict(no_embed_class=True),
        family="rope-vit",
    ),
    "siglip2": Case(
        "vit_base_patch16_siglip_224",
        dict(pretrain_use_cls_token=False),
        (originals.open_clip_trunk,),
        family="vit",
    ),
    "siglip2-tanh": Case(
        "vit_base_patch32_siglip_256",
        dict(pretrain_use_cls_token=False, mlp="gelu_tanh"),
        (originals.open_clip_trunk,),
        family="siglip2-tanh",
    ),
    "clip": Case("vit_base_patch16_clip_224", CLIP, (originals.open_clip,), family="clip"),
    "clip-quickgelu": Case(
        "vit_base_patch16_clip_quickgelu_224",
        CLIP | dict(mlp="quick_gelu"),
        (originals.open_clip,),
        family="clip-quickgelu",
    ),
    "pe-core": Case("vit_pe_core_base_patch16_224", PE, (originals.perception_encoder,)),
    "pe-spatial": Case(
        "vit_pe_spatial_base_patch16_512", PE, (originals.perception_encoder,), family="pe"
    ),
    "pe-lang": Case("vit_pe_lang_large_patch14_448", PE, (originals.perception_encoder,)),
    "pe-gigantic": Case(
        "vit_pe_spatial_gigantic_patch14_448",
        PE | dict(num_prefix_tokens=0, mlp_ratio=8960 / 1536, pretrain_use_cls_token=False),
        (originals.perception_encoder,),
        family="pe",
    ),
    "beit": Case("beit_base_patch16_224", BEIT, (originals.beit,)),
    "beitv2": Case("beitv2_base_patch16_224", BEIT, (originals.beit,)),
    "beit-shared-table": Case(
        "beit_base_patch16_224",
        BEIT,
        (originals.beit_pretrained, originals.beitv2_pretrained),
        dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    ),
    "dinov3": Case(
        "vit_base_patch16_dinov3", DINOV3, (originals.dinov3, originals.dinov3_transformers)
    ),
    "dinov3-qkv-bias": Case(
        "vit_base_patch16_dinov3_qkvb",
        DINOV3 | dict(qkv_bias="qv"),
        (originals.dinov3, originals.dinov3_transformers),
    ),
    "dinov3-plus": Case(
        "vit_small_plus_patch16_dinov3_qkvb",
        DINOV3 | SWIGLU | dict(qkv_bias="qv"),
        (originals.dinov3, originals.dinov3_transformers),
    ),
    "eva02-small": Case("eva02_small_patch14_224", EVA02, (originals.eva02,)),
    "eva02-base": Case(
        "eva02_base_patch14_224", EVA02 | dict(sub_norms=("mlp",)), (originals.eva02,)
    ),
    "eva02-clip": Case(
        "eva02_base_patch16_clip_224",
        EVA02 | dict(sub_norms=("attn", "mlp")),
        (originals.eva02,),
    ),
}


def make_timm(case: Case, size: int | tuple[int, int] = SIDE, **changes: Any) -> nn.Module:
    """timm's model, small, with 16 x 16 patches, in float64."""
    num_classes = 0 if "dino" in case.timm_id else 7
    sides = (size, size) if isinstance(size, int) else size
    # timm scales these positions to each model's grid of pretraining; Meta's own code does not.
    unscaled = dict(ref_feat_shape=[side // 16 for side in sides]) if "_pe_" in case.timm_id else {}
    arguments = (
        SMALL
        | dict(img_size=size, patch_size=16, num_classes=num_classes)
        | unscaled
        | dict(case.timm)
        | changes
    )
    return timm.create_model(case.timm_id, **arguments).double().eval()


def make_vit(case: Case, **changes: Any) -> ViT:
    """The ViT for the family."""
    arguments = (
        SMALL
        | dict(window_size=0, window_block_indexes=(), pretrain_img_size=SIDE)
        | dict(case.net)
        | changes
    )
    return ViT(**arguments)


def make_net(case: Case, *, depth: int = 2, **changes: Any) -> ViTCoMerNet:
    """A network for the family, whose every parameter is random."""
    net = ViTCoMerNet(
        make_vit(case, depth=depth, **changes),
        stem_width=4,
        interaction_indexes=((0, depth - 1),),
        deform_num_heads=3,
        num_extra_cti=0,
    )
    return randomise(net.double()).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Draws every parameter anew, so that nothing hides behind a zero or a one."""
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def state_for(model: nn.Module, size: tuple[int, int], trained: Mapping[str, Tensor]) -> dict:
    """The trained weights for another image size, resampled as this network does, without antialias."""
    grid = [side // 16 for side in size]
    state = dict(trained)
    own = model.state_dict()
    for name, tensor in trained.items():
        if name == "pos_embed":
            rows = tensor.shape[1] - (SIDE // 16) ** 2
            state[name] = resample_abs_pos_embed(
                tensor, grid, num_prefix_tokens=rows, antialias=False
            )
        elif name.endswith("relative_position_bias_table"):
            state[name] = resize_rel_pos_bias_table_simple(tensor, tuple(grid), own[name].shape)
    return state


def timm_features(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Tokens (B, P + N, D) after every block."""
    pairs = model.forward_intermediates(
        image,
        norm=False,
        output_fmt="NLC",
        intermediates_only=True,
        return_prefix_tokens=model.num_prefix_tokens > 0,
    )
    if not model.num_prefix_tokens:
        return pairs
    return [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]


def vit_features(vit: ViT, image: Tensor) -> list[Tensor]:
    """Tokens (B, P + N, D) after every block."""
    height, width = (side // 16 for side in image.shape[-2:])
    x, rope, features = vit.tokens(image), vit.rope_of(height, width), []
    for block in vit.blocks:
        x = block(x, height, width, rope)
        features.append(x)
    return features


@torch.no_grad()
def check_features(case: Case, vit: ViT, trained: Mapping[str, Tensor]) -> None:
    """The ViT's tokens after every block are timm's, at both image sizes."""
    for size in ((SIDE, SIDE), OTHER):
        model = make_timm(case, size)
        state = state_for(model, size, trained) if size != (SIDE, SIDE) else trained
        model.load_state_dict(state)
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        for actual, expected in zip(
            vit_features(vit, image), timm_features(model, image), strict=True
        ):
            assert expected.std() > 0.1
            torch.testing.assert_close(actual, expected, **TOLERANCE)


class UniPerceiver(nn.Module):
    """Uni-Perceiver's image encoder, made of torch's own layers.

    Args:
        post_norm: the first release: norms after the sums, no layer scale.
    """

    def __init__(self, post_norm: bool) -> None:
        super().__init__()
        dim = SMALL["embed_dim"]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 16, stride=16)
        self.spatial = nn.Parameter(torch.zeros((SIDE // 16) ** 2, dim))
        self.temporal = nn.Parameter(torch.zeros(1 if post_norm else 8, dim))
        self.norm_pre = nn.LayerNorm(dim, eps=1e-12 if post_norm else 1e-5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim,
                SMALL["num_heads"],
                4 * dim,
                activation="gelu",
                layer_norm_eps=1e-6 if post_norm else 1e-5,
                batch_first=True,
                norm_first=not post_norm,
            )
            for _ in range(SMALL["depth"])
        )
        self.gammas = {}
        if not post_norm:
            names = [f"layers.{i}.gamma_{j}" for i in range(SMALL["depth"]) for j in (1, 2)]
            self.gammas = {name: torch.randn(dim, dtype=torch.float64) for name in names}

    def original(self) -> dict[str, Tensor]:
        """The weights with layer scales of their own."""
        return self.state_dict() | self.gammas

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Tokens after every layer; the layer scales are multiplied into the weights."""
        original = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for name, gamma in self.gammas.items():
            layer = self.layers[int(name.split(".")[1])]
            target = layer.self_attn.out_proj if name.endswith("1") else layer.linear2
            target.weight *= gamma[:, None]
            target.bias *= gamma
        patches = self.patch_embed.proj(image)
        table = self.spatial.T.unflatten(1, (SIDE // 16, SIDE // 16))[None]
        if patches.shape[-2:] != table.shape[-2:]:
            table = F.interpolate(table, patches.shape[-2:], mode="bicubic", align_corners=False)
        x = self.norm_pre((patches + table).flatten(2).mT + self.temporal[0])
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        self.load_state_dict(original)
        return features


PRE_NORM = Case("", dict(layer_norm_eps=1e-5, pre_norm_eps=1e-5))
UNI_PERCEIVER = {
    originals.uni_perceiver: PRE_NORM,
    originals.uni_perceiver_adapter: PRE_NORM,
    originals.uni_perceiver_post_norm: Case("", dict(pre_norm_eps=1e-12, post_norm=True)),
}
