"""A small ViT-CoMer DINO that learns the boxes of scanned digits on a CPU, from scratch.

`tools/quickstart.py --data-only` makes the dataset; the backbone is the first quickstart's:

python3 train_net.py --config-file configs/quickstart/dino_comer_digits.py
"""

from ..common.models.dino_comer import model
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, optimizer, train
from .mask_rcnn_comer_digits import model as _mask_rcnn

for _split in ("train", "test"):
    dataloader[_split].mapper.use_instance_mask = False

model.backbone = _mask_rcnn.backbone.bottom_up
model.backbone.out_features = ["res3", "res4", "res5"]
_head = model.head
_head.update(dim=64, num_queries=24)
_head.neck.update(in_channels=[64] * 3, num_levels=3, norm_groups=8)
for _part in (_head.encoder, _head.decoder):
    _part.update(num_layers=2, num_heads=4, ffn_dim=128)
_head.decoder.num_layers = 3
_head.denoising.num_queries = 24
_head.proposals.num_classes = "${dataset.num_classes}"
model.max_detections_per_image = 20

optimizer.lr = 1e-3
train.clip_grad.max_norm = 0.1
train.output_dir = "output/quickstart/dino"
