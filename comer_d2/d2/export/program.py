"""A trained model as a program: ONNX, or what `torch.export` saves; compared with the model before it is called done."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from ...network.timm_pyramid import SIZE_CHECKING, TimmPyramid
from ...ops import portable_decompositions
from ...weights.files import write_atomically
from ..errors import UserError
from ..new_folder import check_writable
from .compare import difference
from .images import Size
from .reference import by_the_model
from .traceable import traceable

OPSET = 18
LARGEST_SIDE = 4096  # pixels, of a program that takes images of any size
LARGEST_PHOTO = 2**15  # of one that resizes them itself
LARGEST_BATCH = 1024
# Modules of timm whose networks pad every map to whole windows: of free sides that makes terms with which tracing
# did not end within minutes.
WINDOWED = (*SIZE_CHECKING, "davit", "hieradet_sam2", "twins")


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
    batch: int | None = 1,
    fit: Size | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Exported:
    """Write a model as a program, and compare what the file computes with the model.

    Args:
        model: a Detectron2 model of this project, in evaluation mode, on the CPU.
        path: where to; what is there is replaced when the comparison succeeded.
        format: a key of `WRITERS`.
        images: (3, H, W), pixels from 0 to 255, sides as the program takes them: the first is traced, and the
            file is compared on all.
        dynamic: whether the program takes images of any size; otherwise of the first one's alone.
        batch: images at a time; None: any number.
        fit: see `traceable`; photos of any size then.
        notes: texts by name that the file carries for whoever runs it.

    Returns:
        What was written.

    Raises:
        UserError: this kind of model does not export, or not so, a package is missing, or the file computes
            something else.
    """
    try:
        module = traceable(model, fit)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_target(path, format)
    largest = max(side for image in images for side in image.shape[1:])
    if dynamic and largest > LARGEST_SIDE:
        raise UserError(
            f"an image has {largest} pixels along a side when it is prepared as the test data are, and a program "
            f"of any size takes {LARGEST_SIDE}: use --fixed-size, or smaller test augmentations (--override)"
        )
    if dynamic:
        _refuse_windows(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        first = several(images[0], 2 if batch is None else batch)
        shapes = _shapes(module, free_sides=dynamic or fit is not None, free_batch=batch is None)
        with torch.no_grad(), _quiet():
            try:
                fields = list(module(first)._fields)
            except ValueError as error:  # the images' sides
                raise UserError(str(error)) from error
            lines = [_by_the_model(model, module, first)]
            with _told(f"{type(model).__name__} of {_text(first)} cannot be traced"):
                program = torch.export.export(Named(module), (first,), dynamic_shapes=shapes)
        run, written = WRITERS[format].write(program, part, fields, notes)
        lines += written
        for given in _compared(images, batch):
            with torch.no_grad():
                expected = module(given)
            with _told(
                f"the program that was traced at {_text(first)} does not run at {_text(given)}"
            ):
                found = run(given)
            lines.append(difference(expected, found, _text(given)))
        write_atomically(path, lambda temporary: os.replace(part, temporary))
    finally:
        part.unlink(missing_ok=True)
    number = "N" if batch is None else batch
    shape = "H, W" if shapes and (dynamic or fit) else ", ".join(map(str, first.shape[2:]))
    return Exported(
        path, [f"images ({number}, 3, {shape}) float32, pixels 0 to 255"], fields, lines
    )


def check_target(path: Path, format: str) -> None:
    """Before anything is computed: whether a file of a format can be written under a name.

    Args:
        path: of the file.
        format: a key of `WRITERS`.

    Raises:
        UserError: it cannot, or a package or a compiler is missing.
    """
    writer = WRITERS[format]
    if path.suffix != writer.ending:
        raise UserError(f"{path}: name a file of --format {format} with {writer.ending} at the end")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    check_writable(path.parent)
    writer.check()


def _refuse_windows(model: nn.Module) -> None:
    """Raises UserError for a network that has to be traced at one size."""
    for part in model.modules():
        if isinstance(part, TimmPyramid) and is_model_in_modules(part.name, WINDOWED):
            raise UserError(
                f"{part.name}, whose windows depend on the image's size, exports for one size: --fixed-size H W, with "
                "--resize for photos of any size"
            )


def several(image: Tensor, number: int) -> Tensor:
    """A batch of unlike images of one size: an image (3, H, W), moved to the side ever further."""
    width = image.shape[2]
    return torch.stack([image.float().roll(i * width // number, 2) for i in range(number)])


def _compared(images: Sequence[Tensor], batch: int | None) -> Iterator[Tensor]:
    if batch is None:  # traced with two
        yield several(images[0], 3)
    for image in images:
        yield several(image, batch or 1)


def _by_the_model(model: nn.Module, module: nn.Module, images: Tensor) -> str:
    """What is traced gives what the model itself does.

    Where it resizes, of images of the size that it resizes to: the model would pad others another way.
    """
    if module.images.fit is not None:
        images = nn.functional.interpolate(images, module.images.fit, mode="bilinear", antialias=True)  # fmt: skip
    found = module(images)
    return "traced " + difference(by_the_model(model, images, found), found, _text(images))


def _text(images: Tensor) -> str:
    batch, _, height, width = images.shape
    return f"{height} x {width}" if batch == 1 else f"{batch} images of {height} x {width}"


def _shapes(
    module: nn.Module, *, free_sides: bool, free_batch: bool
) -> tuple[dict[int, Any]] | None:
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)} if free_batch else {}  # fmt: skip
    if free_sides:
        photos = module.images.fit is not None
        step, most = (1, LARGEST_PHOTO) if photos else (module.images.divisor, LARGEST_SIDE)
        for side, name in ((2, "height"), (3, "width")):
            dim = torch.export.Dim(name, min=1, max=most // step)
            free[side] = step * dim if step > 1 else dim
    return (free,) if free else None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell in one line what a compiler or a runtime, whose errors are of many kinds, gave up on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"{what} ({first}): --fixed-size and --batch 1 ask for less, and images whose coarsest map has one "
            "cell along a side are a shape of their own"
        ) from error


Run = Callable[[Tensor], list[Tensor]]


def _write_torch(
    program: Any, path: Path, names: list[str], notes: Mapping[str, str]
) -> tuple[Run, list[str]]:
    torch.export.save(program, path, extra_files=dict(notes))
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


def _check_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'comer_d2[export]'") from error


def _write_onnx(
    program: Any, path: Path, names: list[str], notes: Mapping[str, str]
) -> tuple[Run, list[str]]:
    import onnx
    import onnxruntime

    from .onnx_operators import translations

    table = torch.export.default_decompositions() | portable_decompositions()
    # Detectron2's anchors call it without saying how; PyTorch's own decomposition wants to be told.
    table[torch.ops.aten.meshgrid.default] = lambda tensors: torch.ops.aten.meshgrid.indexing(tensors, indexing="ij")  # fmt: skip
    with torch.no_grad(), _quiet(), _told("the program cannot be put into elementary operations"):
        program = program.run_decompositions(table)
    with _quiet(), _told("torch.onnx cannot translate the program"):
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            custom_translation_table=translations(),
            verbose=False,
        )
        written.model.metadata_props.update(notes)
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


def _check_compiler() -> None:
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(
            "--format aoti needs a C++ compiler, and there is none: install g++, or name one in the "
            "environment variable CXX"
        ) from error


def _write_aoti(
    program: Any, path: Path, names: list[str], notes: Mapping[str, str]
) -> tuple[Run, list[str]]:
    from torch._inductor import aoti_compile_and_package, aoti_load_package, cpp_builder

    with torch.no_grad(), _quiet(), _told("AOTInductor cannot compile the program"):
        aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": dict(notes)},
        )
    again = aoti_load_package(str(path))
    compiler = cpp_builder.get_cpp_compiler()

    def run(images: Tensor) -> list[Tensor]:
        return list(again(images).values())

    return run, [
        f"compiled by {compiler} for this kind of processor; runs where comer_d2 is installed: "
        "`import comer_d2.ops`, then torch._inductor.aoti_load_package"
    ]


@dataclass(frozen=True)
class Writer:
    """A format.

    Args:
        ending: of its files.
        check: raises a UserError where something it needs is missing.
        write: program, path, names of the outputs, notes -> what runs the file, and what to say about it.
    """

    ending: str
    check: Callable[[], None]
    write: Callable[[Any, Path, list[str], Mapping[str, str]], tuple[Run, list[str]]]


WRITERS = {
    "onnx": Writer(".onnx", _check_onnx, _write_onnx),
    "torch-export": Writer(".pt2", lambda: None, _write_torch),
    "aoti": Writer(".pt2", _check_compiler, _write_aoti),
}
