"""Everything that is wrong with a config's data, found by reading all of it once."""

from pathlib import Path

from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ..errors import UserError
from ..new_folder import new_folder
from .custom import kind_of, kind_of_config
from .kind import SPLITS, DatasetError, check_settings


def find_problems(cfg: DictConfig, *, progress: bool = True) -> list[str]:
    """Read every image and annotation.

    Args:
        cfg: a whole LazyConfig; its `dataset` is read, or without one the registered datasets that
            ``dataloader.{train,test}.dataset.names`` names.
        progress: show progress bars.

    Returns:
        One line for each problem; it names the file and the entry. None: nothing is wrong.
    """
    if "dataset" in cfg:
        try:
            check_settings(cfg.dataset)
            kind_of_config(cfg).check(cfg, decode=True, shown=None)
        except DatasetError as error:
            return str(error).splitlines()
        return []
    problems = []
    for split in ("train", "test"):
        names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names")
        for name in [names] if isinstance(names, str) else names or []:
            problems += find_wrong_records(name, progress=progress)
    return problems


def find_wrong_records(name: str, *, progress: bool = True) -> list[str]:
    """Read all files of a registered dataset.

    Args:
        name: in Detectron2's catalog.
        progress: show a progress bar.

    Returns:
        One line for each record that cannot be used; it names the file.
    """
    kind = kind_of(name)
    problems = []
    for record in tqdm(DatasetCatalog.get(name), name, unit="image", disable=not progress):
        try:
            kind.read(record)
        except UserError as error:
            problems.append(str(error))
    return problems


def write_repaired(cfg: DictConfig, folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Write a copy of the user's own annotations without what can be repaired or has to be left out.

    Args:
        cfg: a whole LazyConfig with `dataset`.
        folder: where to: a new or an empty one.

    Returns:
        What was done, and what keys of `dataset` take the copy by.

    Raises:
        DatasetError: what cannot be repaired, or the folder holds something.
    """
    if "dataset" not in cfg:
        raise DatasetError("only data of your own are repaired: the config has no `dataset`")
    kind = kind_of_config(cfg)
    lines, keys = [], {}
    with new_folder(folder) as part:
        for split in SPLITS:
            notes, names = kind.write_repaired(cfg, split, part)
            lines += notes
            keys |= {key: folder / name for key, name in names.items()}
    return lines, keys
