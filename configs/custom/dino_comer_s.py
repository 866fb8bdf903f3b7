"""ViT-CoMer-S DINO on COCO-format data of your own, boxes or masks; it needs only paths:

python3 train_net.py --config-file configs/custom/dino_comer_s.py \
    dataset.train_json=train.json dataset.train_images=train/ \
    dataset.val_json=val.json dataset.val_images=val/
"""

from ..COCO.dino_comer_s_12ep import model, optimizer, train
from ..common.data.coco_custom import dataloader, dataset
from ..common.small_data import lr_multiplier, small_data

model.head.proposals.num_classes = "${dataset.num_classes}"
for _split in ("train", "test"):
    dataloader[_split].mapper.use_instance_mask = False  # boxes are enough

small_data(dataloader, optimizer, train, output_dir="output/custom_dino")
