"""Plain ViT pretrainings by their authors' names and timm's: a state dict -> a `Pretraining`.

One function per origin. Each knows all names of its layout: tensors that ViT-CoMer has no use for
are left out with the reason; a name that a layout does not have is unexpected, and so an error when
loading.
"""

from collections.abc import Mapping

from torch import Tensor

from .files import WeightsError
from .ledger import Ledger, Pretraining
from .vit_parts import (
    close,
    fuse_qkv,
    mask_key_bias,
    move_tokens,
    split_glu,
    take_sequence,
    token_rows,
)

BLOCKS = r"blocks\.(\d+)\."
# A block's parts by the names that timm and most authors use.
BLOCK = [
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"norm_pre\.(weight|bias)", r"norm_pre.\1"),
    (BLOCKS + r"norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (BLOCKS + r"attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (BLOCKS + r"attn\.(?:qkv\.)?([qv])_bias", r"blocks.\1.attn.qkv.\2_bias"),
    (BLOCKS + r"mlp\.(fc1|fc2|fc1_g|fc1_x)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (BLOCKS + r"ls([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (BLOCKS + r"gamma_?([12])", r"blocks.\1.ls\2.gamma"),
]
TABLE = (
    BLOCKS + r"attn\.relative_position_bias_table",
    r"blocks.\1.attn.relative_position_bias_table",
)
OWN_CLASS_ROW = "the class token's row; the network does not use it"
FINAL_NORM = "ViT-CoMer has no norm after the last block"
CLASSIFIER = "the family's own head"
MASK_TOKEN = "only used in masked pretraining"
COMPUTED = "computed here, not learnt"
NOT_USED = [
    (r"(norm|fc_norm)\.(weight|bias)", FINAL_NORM),
    (r"(head|head_dist|fc|proj)\.(weight|bias)", CLASSIFIER),
    (r"attn_pool\..*", CLASSIFIER),
    (r"mask_token", MASK_TOKEN),
]


def plain_vit(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """DeiT, AugReg, MAE, DINO, DINOv2, DeiT-III and SigLIP 2, by their authors' names and timm's.

    Also CLIP as timm has it: with ``norm_pre``, epsilon 1e-5, and, as OpenAI trained it, QuickGELU.
    """
    ledger = Ledger(source, family)
    ledger.drop([*NOT_USED, (r"pre_logits\.fc\..*", CLASSIFIER)])
    ledger.drop([(r"decoder_.*", "MAE's decoder")])
    move_tokens(ledger, ["cls_token", "dist_token", "reg_token", "register_tokens"])
    split_glu(ledger)
    ledger.rename(BLOCK)
    return close(ledger, family)


def beit(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """BEiT and BEiTv2, pretrained (one table of relative positions) or fine-tuned (one per block)."""
    ledger = Ledger(source, family)
    ledger.drop(
        [
            *NOT_USED,
            (r"lm_head\..*", CLASSIFIER),
            (r"cls_pt_layers\..*", "BEiTv2's layers behind the ViT, only used in pretraining"),
            (r".*relative_position_index", COMPUTED),
        ]
    )
    move_tokens(ledger, ["cls_token"])
    ledger.rename(BLOCK)
    ledger.rename([TABLE])
    table = "attn.relative_position_bias_table"
    shared = "rel_pos_bias.relative_position_bias_table"
    if shared in ledger.left:
        tensor = ledger.take(shared)
        for i in range(ledger.result.depth):
            ledger.put(f"blocks.{i}.{table}", tensor)
        ledger.note(shared, tensor.numel(), f"blocks.0.{table}", "shared, now one in every block")
    return close(ledger, family)


def eva02(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """EVA-02, by its authors' names and timm's; also its CLIP towers."""
    ledger = Ledger(source, family)
    ledger.drop(
        [
            *NOT_USED,
            (r"lm_head\..*", CLASSIFIER),
            (r"(.*\.)?rope\.freqs_(cos|sin)", COMPUTED),
        ]
    )
    move_tokens(ledger, ["cls_token"])
    fuse_qkv(ledger, "blocks.{}.attn.{}_proj.weight", "weight")
    authors = [
        (BLOCKS + r"attn\.([qv])_proj\.bias", r"blocks.\1.attn.qkv.\2_bias"),
        (BLOCKS + r"attn\.(?:inner_attn_ln|norm)\.(weight|bias)", r"blocks.\1.attn.norm.\2"),
        (BLOCKS + r"mlp\.(?:ffn_ln|norm)\.(weight|bias)", r"blocks.\1.mlp.norm.\2"),
        (BLOCKS + r"mlp\.w1\.(weight|bias)", r"blocks.\1.mlp.fc1_g.\2"),
        (BLOCKS + r"mlp\.w2\.(weight|bias)", r"blocks.\1.mlp.fc1_x.\2"),
        (BLOCKS + r"mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    ]
    split_glu(ledger)
    ledger.rename([*authors, *BLOCK])
    if "blocks.0.mlp.fc1_g.weight" not in ledger.result.tensors:
        raise WeightsError("this is not EVA-02: its MLPs have no gate (EVA's, the first, have not)")
    return close(ledger, family)


def dinov3(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """DINOv3, by its authors' names and timm's, with and without biases of q and v."""
    ledger = Ledger(source, family)
    mask_key_bias(ledger)
    ledger.drop(
        [
            *NOT_USED,
            (r"rope_embed\.periods", COMPUTED),
            (r"local_cls_norm\..*", "only used for the small crops of the pretraining"),
        ]
    )
    move_tokens(ledger, ["cls_token", "reg_token", "storage_tokens"])
    swiglu = [
        (BLOCKS + r"mlp\.w1\.(weight|bias)", r"blocks.\1.mlp.fc1_g.\2"),
        (BLOCKS + r"mlp\.w2\.(weight|bias)", r"blocks.\1.mlp.fc1_x.\2"),
        (BLOCKS + r"mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    ]
    ledger.rename([*swiglu, *BLOCK])
    return close(ledger, family)


def own_branch(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """Any family by the names of this network, where the rows of tokens are added to them already."""
    ledger = Ledger(source, family)
    sub_norm = (BLOCKS + r"(attn|mlp)\.norm\.(weight|bias)", r"blocks.\1.\2.norm.\3")
    ledger.rename([(r"(prefix_tokens)", r"\1"), TABLE, sub_norm, *BLOCK])
    if "pos_embed" in ledger.left:
        rows = take_sequence(ledger, "pos_embed")
        num_class = token_rows("pos_embed", rows.shape[1], 1)
        ledger.put("pos_embed", rows[:, num_class:])
        ledger.note("pos_embed", rows[:, num_class:].numel(), "pos_embed")
        if num_class:
            ledger.put("pos_embed.class_row", rows[:, :1])
            ledger.note("pos_embed", rows.shape[2], "pos_embed.class_row", OWN_CLASS_ROW)
    return close(ledger, family)
