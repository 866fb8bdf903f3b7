"""Reads every image and label of a registered dataset, to find before training what is wrong."""

from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog
from tqdm import tqdm

from ..errors import UserError
from .segmentation_mappers import PanopticMapper, SemanticMapper


def find_wrong_files(name: str, *, progress: bool = True) -> list[str]:
    """Map every sample of a semantic or panoptic dataset, as training would, without augmentation.

    Args:
        name: in Detectron2's catalog.
        progress: show a progress bar.

    Returns:
        One line for every sample that cannot be trained on; it names the file.
    """
    records: Iterable[dict[str, Any]] = DatasetCatalog.get(name)
    semantic = SemanticMapper(True, dataset_name=name, augmentations=[])
    panoptic = PanopticMapper(True, augmentations=[])
    problems = []
    for record in tqdm(records, desc=name, unit="image", disable=not progress):
        mapper = semantic if "sem_seg_file_name" in record else panoptic
        try:
            mapper(record)
        except (UserError, OSError, ValueError) as error:
            problems.append(str(error))
    return problems
