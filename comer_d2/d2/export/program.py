"""A trained model as a program: ONNX, or what `torch.export` saves; compared with the model before it is called done."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...ops import portable_decompositions
from ...weights.files import write_atomically
from ..errors import UserError
from .compare import difference
from .traceable import traceable

OPSET = 18
LARGEST_SIDE = 4096  # pixels, of a program that takes images of any size


class Named(nn.Module):
    """A traceable model whose outputs are a dict, which `torch.export.save` can write.

    Args:
        module: of `traceable`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) -> the fields of the model's named tuple."""
        return self.module(images)._asdict()


@dataclass
class Exported:
    """What was written.

    Args:
        path: of the file.
        inputs: their names and shapes.
        outputs: their names.
        lines: what to say about it: differences from the model, operators.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    lines: list[str]


def export_program(
    model: nn.Module,
    path: Path,
    *,
    format: str,
    images: Sequence[Tensor],
    dynamic: bool,
) -> Exported:
    """Write a model as a program, and compare what the file computes with the model.

    Args:
        model: a Detectron2 model of this project, in evaluation mode, on the CPU.
        path: where to; what is there is replaced when the comparison succeeded.
        format: "onnx" or "torch-export".
        images: (3, H, W), pixels from 0 to 255, sides as the model takes them: the first is traced, and the
            file is compared on all.
        dynamic: whether the program takes images of any size; otherwise of the first one's alone.

    Returns:
        What was written.

    Raises:
        UserError: this kind of model does not export, a package is missing, or the file computes something
            else.
    """
    try:
        module = traceable(model)
    except ValueError as error:
        raise UserError(str(error)) from error
    first = images[0][None].float()
    with torch.no_grad(), _quiet():
        fields = list(module(first)._fields)
        program = torch.export.export(Named(module), (first,), dynamic_shapes=_shapes(module, first) if dynamic else None)  # fmt: skip
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        run, lines = WRITERS[format](program, part, fields)
        for image in images:
            with torch.no_grad():
                expected = module(image[None].float())
            try:
                found = run(image[None].float())
            except (
                AssertionError
            ) as error:  # a guard: torch.export takes a side of one cell for a shape of its own
                raise UserError(
                    f"the program that was traced at {tuple(first.shape[2:])} does not run at {tuple(image.shape[1:])} "
                    f"({error}): UPerNet, and images whose coarsest map has one cell along a side, need --fixed-size"
                ) from error
            lines.append(difference(expected, found, tuple(image.shape[1:])))
        write_atomically(path, lambda temporary: os.replace(part, temporary))
    finally:
        part.unlink(missing_ok=True)
    shape = "(1, 3, H, W)" if dynamic else str(tuple(first.shape))
    return Exported(path, [f"images {shape} float32, pixels 0 to 255"], fields, lines)


def _shapes(module: nn.Module, image: Tensor) -> tuple[dict[int, Any]]:
    divisor = module.images.divisor
    height, width = (
        divisor * torch.export.Dim(name, min=1, max=LARGEST_SIDE // divisor)
        for name in ("height", "width")
    )
    return ({2: height, 3: width},)


Run = Callable[[Tensor], list[Tensor]]


def _write_torch(program: Any, path: Path, names: list[str]) -> tuple[Run, list[str]]:
    torch.export.save(program, path)
    again = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(again(images).values())

    return run, ["runs where comer_d2 is installed: `import comer_d2.ops`, then torch.export.load"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what it could not simplify."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _write_onnx(program: Any, path: Path, names: list[str]) -> tuple[Run, list[str]]:
    try:
        import onnx
        import onnxruntime

        from .onnx_nms import translations
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'comer_d2[export]'") from error
    table = torch.export.default_decompositions() | portable_decompositions()
    # Detectron2's anchors call it without saying how; PyTorch's own decomposition wants to be told.
    table[torch.ops.aten.meshgrid.default] = lambda tensors: torch.ops.aten.meshgrid.indexing(tensors, indexing="ij")  # fmt: skip
    with torch.no_grad():
        program = program.run_decompositions(table)
    with _quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            custom_translation_table=translations(),
            verbose=False,
        )
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(images: Tensor) -> list[Tensor]:
        return [
            torch.from_numpy(np.asarray(x)) for x in session.run(None, {given.name: images.numpy()})
        ]

    graph = onnx.load(path, load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert "GridSample" not in operators  # TensorRT compiles it wrongly here
    used = ", ".join(f"{name} {count}" for name, count in sorted(operators.items()))
    return run, [f"opset {OPSET}; operators: {used}"]


WRITERS: dict[str, Callable[[Any, Path, list[str]], tuple[Run, list[str]]]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch,
}
