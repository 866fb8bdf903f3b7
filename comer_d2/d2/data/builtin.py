"""Public datasets that Detectron2's catalog lacks, registered when this module is imported.

As Detectron2's own they live below `DETECTRON2_DATASETS` (`./datasets`); tools/prepare_ade20k.py makes what
of ADE20K is not downloaded, and COCO-Stuff's label maps are read as they are.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES

from .panoptic_json import load_panoptic

# The 100 of ADE20K's 150 classes that have instances, in the order of its instance annotations.
# Source: the instance track of the Places challenge 2017, built on ADE20K (arXiv 1608.05442).
ADE20K_THINGS = (
    7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37,
    38, 39, 41, 42, 43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67,
    69, 70, 71, 72, 73, 74, 75, 76, 78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92,
    93, 95, 97, 98, 102, 103, 104, 107, 108, 110, 111, 112, 115, 116, 118, 119, 120, 121, 123, 124,
    125, 126, 127, 129, 130, 132, 133, 134, 135, 136, 137, 138, 139, 142, 143, 144, 146, 147, 148, 149,
)  # fmt: skip

# COCO-Stuff's category ids 92 to 182, in order. Source: arXiv 1612.03716.
COCO_STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter",
    "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble",
    "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing",
    "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf",
    "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
FIRST_COCO_STUFF_ID = 92


def register_ade20k_panoptic(root: str) -> None:
    """``ade20k_panoptic_{train,val}``: all 150 classes, 100 of them things."""
    root = os.path.join(root, "ADEChallengeData2016")
    names = list(ADE20K_SEM_SEG_CATEGORIES)
    classes = {i: i for i in range(len(names))}
    things = set(ADE20K_THINGS)
    for split, folder in (("train", "training"), ("val", "validation")):
        images = os.path.join(root, "images", folder)
        masks = os.path.join(root, f"ade20k_panoptic_{split}")
        name = f"ade20k_panoptic_{split}"
        DatasetCatalog.register(
            name,
            lambda json_file=f"{masks}.json", images=images, masks=masks: load_panoptic(
                json_file, images, masks, classes, things
            ),
        )
        MetadataCatalog.get(name).set(
            thing_classes=names,
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id={i: i for i in ADE20K_THINGS},
            stuff_dataset_id_to_contiguous_id={i: i for i in classes if i not in things},
            image_root=images,
            panoptic_root=masks,
            panoptic_json=f"{masks}.json",
            ignore_label=255,
        )


def register_coco_stuff(root: str) -> None:
    """``coco_2017_{train,val}_stuff_164k``: 80 things and 91 stuff classes as label maps."""
    root = os.path.join(root, "coco")
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    ids = [category["id"] for category in things]
    ids += range(FIRST_COCO_STUFF_ID, FIRST_COCO_STUFF_ID + len(COCO_STUFF))
    for split in ("train", "val"):
        images = os.path.join(root, f"{split}2017")
        labels = os.path.join(root, "stuffthingmaps", f"{split}2017")
        name = f"coco_2017_{split}_stuff_164k"
        DatasetCatalog.register(
            name, lambda labels=labels, images=images: load_sem_seg(labels, images)
        )
        MetadataCatalog.get(name).set(
            stuff_classes=[category["name"] for category in things] + list(COCO_STUFF),
            label_in_file=[i - 1 for i in ids],  # the files hold category ids less one
            image_root=images,
            sem_seg_root=labels,
            ignore_label=255,
        )


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_ade20k_panoptic(_root)
register_coco_stuff(_root)
