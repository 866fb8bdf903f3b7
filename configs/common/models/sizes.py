"""The four sizes, each as one edit of a model: `comer_size(model.backbone.bottom_up, "S")`.

What depends on the pretraining and not on the size (the grid of the position table) is the leaf's.
"""

VIT = {
    "T": dict(embed_dim=192, depth=12, num_heads=3),
    "S": dict(embed_dim=384, depth=12, num_heads=6),
    "B": dict(embed_dim=768, depth=12, num_heads=12),
    "L": dict(embed_dim=1024, depth=24, num_heads=16),
}
# The deformable attention's inner width is deform_ratio * embed_dim: half of it for the large ones.
COMER = {
    "T": dict(deform_num_heads=6, deform_ratio=1.0),
    "S": dict(deform_num_heads=6, deform_ratio=1.0),
    "B": dict(deform_num_heads=12, deform_ratio=0.5),
    "L": dict(deform_num_heads=16, deform_ratio=0.5),
}
# S and B as released, T as ViT-Adapter-T, L as B.
DROP_PATH_RATE = {"T": 0.1, "S": 0.2, "B": 0.3, "L": 0.3}
NUM_INTERACTIONS = 4


def vit_size(vit, size):
    """Gives a plain ViT, or the ViT of a ViT-CoMer, one of the sizes.

    The last block of every quarter of the depth is global, so that each interaction ends on tokens
    that have seen the whole image: every third block of 12 (2, 5, 8, 11), every sixth of 24 (5, 11,
    17, 23), as in ViTDet and ViT-Adapter.
    """
    depth = VIT[size]["depth"]
    per_stage = depth // NUM_INTERACTIONS
    vit.update(VIT[size])
    vit.drop_path_rate = DROP_PATH_RATE[size]
    vit.window_block_indexes = [i for i in range(depth) if (i + 1) % per_stage]


def comer_size(comer, size):
    """Gives a ViT-CoMer one of the sizes. Its interactions share out the blocks evenly."""
    vit_size(comer.vit, size)
    comer.update(COMER[size])
    per_stage = comer.vit.depth // NUM_INTERACTIONS
    comer.interaction_indexes = [
        [i * per_stage, (i + 1) * per_stage - 1] for i in range(NUM_INTERACTIONS)
    ]
