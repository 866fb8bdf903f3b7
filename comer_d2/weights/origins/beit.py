"""BEiT and BEiTv2, pretrained (one table of relative positions) or fine-tuned (one per block).

Names: microsoft/unilm, beit and beit2; timm.
"""

from ..conversion import Conversion, Layout, Origin, same
from ..vit_steps import COMPUTED, GAMMA, HEADS, PLAIN_BLOCK, QUERY_VALUE_BIAS, tokens

BIAS_TABLE = "attn.relative_position_bias_table"
SHARED = "rel_pos_bias.relative_position_bias_table"


def share_out(conversion: Conversion) -> None:
    """One table for all blocks is one in every block."""
    if SHARED in conversion.left:
        table = conversion.take(SHARED)
        blocks = {name.split(".")[1] for name in conversion.left if name.startswith("blocks.")}
        for i in sorted(blocks, key=int):
            conversion.put(f"blocks.{i}.{BIAS_TABLE}", table)
        note = "shared, now one in every block"
        conversion.note(SHARED, table.numel(), f"blocks.0.{BIAS_TABLE}", note)


BEIT = Layout(
    {**PLAIN_BLOCK, **GAMMA, **QUERY_VALUE_BIAS, **same(f"blocks.#.{BIAS_TABLE}")},
    {
        **HEADS,
        "cls_pt_layers.*": "BEiTv2's layers behind the ViT, only used in pretraining",
        "rel_pos_bias.relative_position_index": COMPUTED,
        "blocks.#.attn.relative_position_index": COMPUTED,
    },
    (r"cls_token", r".*relative_position_bias_table", r"blocks\.0\.attn\.q_bias"),
    takes=("cls_token", "pos_embed", SHARED),
    prepare=(tokens("cls_token"), share_out),
)
ORIGINS = (Origin("beit", "BEiT or BEiTv2", (BEIT,), computes={"use_rel_pos_bias": True}),)
