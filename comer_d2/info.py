"""comer-d2 info: what is installed here, and what computes the operator."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence

import torch

from . import __version__
from .ops import library_status

PACKAGES = (
    "torchvision",
    "timm",
    "detectron2",
    "numpy",
    "pillow",
    "pycocotools",
    "opencv-python",
    "opencv-python-headless",
    "supervision",
    "av",
    "onnx",
    "onnxruntime",
    "gradio",
    "huggingface_hub",
)


def describe() -> list[tuple[str, str]]:
    """Names and values, in the order in which they are printed."""
    rows = [
        ("comer_d2", f"{__version__} in {os.path.dirname(__file__)}"),
        ("Python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            # A checkout on the path has no metadata.
            here = importlib.util.find_spec(name) is not None if "-" not in name else False
            rows.append((name, "here, of unknown version" if here else "not installed"))
    rows.append(("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"))
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append((f"GPU {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none that torch can use"))
    rows += [(f"operator on {device}", status) for device, status in library_status().items()]
    return rows


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Print versions, devices, and what computes the operator: for bug reports.",
        epilog="example:\n  comer-d2 info",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    rows = describe()
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows))
    return 0
