"""Co-DINO on ViT-CoMer-L with BEiTv2: the model of the paper's Table 4, whose recipe is not released.

The authors name BEiTv2-L, 16 epochs and 1536 pixels. All else is what Co-DETR's authors released for
a ViT-L (16 epochs, too): 1500 queries, 300 denoising queries of less noise, a 4conv1fc box head with
group norm for all classes, the optimizer and the milestones.
"""

from ..common.data.coco_lsj import dataloader, jitter_crop
from ..common.models.codino_comer import model
from ..common.models.dino_comer import dino_size
from ..common.optim import AdamW as optimizer
from ..common.schedule import iterations, steps
from ..common.train import train

SIDE = 1536  # pixels: 96 x 96 tokens

dino_size(model, "L")
model.backbone.vit.update(
    use_abs_pos=False,
    use_rel_pos_bias=True,
    qkv_bias="qv",
    window_size=([14] * 5 + [56]) * 4,  # the authors' BEiT: every sixth block sees 896 pixels
    window_block_indexes=None,
    drop_path_rate=0.4,
    layer_scale_init=1e-6,
)
model.backbone.update(gate_init=1e-6, use_act_checkpoint=True, square_pad=SIDE)
model.head.num_queries = 1500
model.head.denoising.update(num_queries=300, box_noise=0.4)
model.head.encoder.use_act_checkpoint = True
_roi_heads = model.collaborative.roi_heads
_roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="GN")
_roi_heads.box_predictor.box2box_transform.weights = [20.0, 20.0, 10.0, 10.0]
_roi_heads.box_predictor.cls_agnostic_bbox_reg = True

jitter_crop(dataloader, SIDE)
dataloader.train.total_batch_size = 16

optimizer.lr = 5e-5  # for a batch of 16
optimizer.weight_decay = 0.01
optimizer.params.lr_decay_rate = 0.80
train.clip_grad.max_norm = 0.1

# 16 epochs of 117,266 images in batches of 16: 117,266 it. A tenth of the rate after 9 epochs
# (65,963 it) and again after 15 (109,937).
lr_multiplier = steps(iterations(16), [iterations(9), iterations(15)], warmup_iters=500)
train.max_iter = lr_multiplier.scheduler.num_updates
train.eval_period = train.checkpointer.period = iterations(epochs=1)
train.checkpointer.max_to_keep = 3  # and the best
train.amp.enabled = True
train.init_checkpoint = ""  # from scratch

# As Co-DETR is evaluated: model.soft_nms_threshold=0.8 model.max_detections_per_image=1000
