"""Positions: sine encodings, and learned tables resized to other maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.registry import without_autocast

LONGEST_PERIOD = 100.0  # nearly, of DINOv3's rotary positions, in units of half a side
REMEMBERED_SIZES = 4  # that an evaluation's images have in turns; of a ViT-L at 1024, 16 MiB each


def sine_encoding(x: Tensor, dim: int, temperature: float) -> Tensor:
    """Sines and cosines of numbers at several frequencies.

    Args:
        x: (...), in radians.
        dim: channels C, even: a pair is sine and cosine at one frequency.
        temperature: the frequencies go from 1 down to nearly its inverse.

    Returns:
        (..., C).
    """
    pairs = torch.arange(dim // 2, device=x.device, dtype=x.dtype)
    angle = x[..., None] / temperature ** (2 * pairs / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def sine_position_encoding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Position encoding of a map: half of the channels for y, half for x.

    Positions count from 1 and are scaled to 2 pi over the map; a channel pair is the sine and the
    cosine of the position at one of ``dim / 4`` frequencies, from 1 down to 1/10000.

    Args:
        height: rows H.
        width: columns W.
        dim: channels C, a multiple of 4.
        device: of the result.

    Returns:
        (H*W, C) float32.
    """

    def axis(size: int) -> Tensor:
        position = torch.arange(1, size + 1, device=device, dtype=torch.float32)
        return sine_encoding(position / (size + 1e-6) * (2 * math.pi), dim // 2, 10000)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


class CentredRotaryPositions(nn.Module):
    """Rotary positions of DINOv3: centres of a map's cells, from -1 to 1 along each side.

    The numbers of timm's, which takes the sides for constants in ``torch.export`` and computes on the host.

    Source: Sec. 3.2 of arXiv 2508.10104 (DINOv3).

    Args:
        head_dim: channels d of a head, a multiple of 4.
    """

    numbers: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        # Integers: a network's change of type leaves them alone.
        self.register_buffer("numbers", torch.arange(head_dim // 4), persistent=False)

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """Rows and columns of a map -> (rows*columns, 2*d) float32, sines, then cosines."""
        height, width = (
            (torch.arange(size, device=self.numbers.device, dtype=torch.float32) + 0.5) / size
            for size in shape
        )
        grid = torch.meshgrid(height, width, indexing="ij")
        centres = 2 * torch.stack(grid, dim=-1).flatten(0, 1) - 1
        periods = LONGEST_PERIOD ** (self.numbers.float() / len(self.numbers))
        angles = (2 * math.pi * centres[..., None] / periods).flatten(1)
        return torch.cat([angles.sin().tile(2), angles.cos().tile(2)], dim=-1)


def resize_position_table(table: Tensor, height: int, width: int) -> Tensor:
    """Resizes a square position table to a grid.

    Bicubic, ``align_corners=False``, no antialiasing: the resampling of the released weights.

    Args:
        table: (1, G*G, D), rows of a G x G grid.
        height: rows of the new grid.
        width: columns of the new grid.

    Returns:
        (1, height*width, D).
    """
    grid = round(table.shape[1] ** 0.5)
    if not torch.compiler.is_compiling() and (grid, grid) == (height, width):
        return table
    return resize_bicubic(table.unflatten(1, (grid, grid)), height, width).flatten(1, 2)


@dataclass
class Remembered:
    """What :class:`ResizedTables` remembers of one state of one parameter."""

    version: int
    memory: Tensor  # the table's own; while it is held, no other can come to lie there
    resized: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def is_of(self, table: Tensor) -> bool:
        """Whether nothing has happened to the table."""
        return (
            self.version == table._version
            and self.memory.data_ptr() == table.data_ptr()
            and self.memory.dtype == table.dtype
        )


class ResizedTables:
    """A learned position table at the sizes of a few images, resized once for many in evaluation.

    A change of the table is noticed by its version, memory and type. What leaves no trace there (a
    write through ``.data``, a fused optimizer, a CUDA graph) the owner tells with :meth:`forget`, whenever it
    goes to training or to evaluation. Copies and pickles remember nothing.
    """

    def __init__(self) -> None:
        self._remembered: Remembered | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def forget(self) -> None:
        """Resizes anew at the next call."""
        self._remembered = None

    def of(self, parameter: Tensor, first: int, height: int, width: int, *, keep: bool) -> Tensor:
        """The rows of a table from ``first`` on, as :func:`resize_position_table` resizes them.

        Args:
            parameter: (1, first + G*G, D).
            first: rows in front of the grid's, 0 or 1.
            height: rows of the new grid.
            width: columns of the new grid.
            keep: whether to remember, where that is possible.

        Returns:
            (1, height*width, D), not to be written to.
        """
        size = (first, height, width)
        if not (keep and can_be_remembered(parameter, size)):
            if not torch.compiler.is_compiling():
                self.forget()
            return resize_position_table(parameter[:, first:], height, width)
        remembered = self._remembered
        if remembered is None or not remembered.is_of(parameter):
            remembered = Remembered(parameter._version, parameter.detach())
            self._remembered = remembered
        resized = remembered.resized.get(size)
        if resized is None:
            resized = resize_position_table(parameter[:, first:], height, width)
            if type(resized) is Tensor:  # not a fake one of who only wants shapes
                if len(remembered.resized) == REMEMBERED_SIZES:
                    remembered.resized = {}
                remembered.resized[size] = resized
        return resized


def can_be_remembered(parameter: Tensor, size: tuple[int, ...]) -> bool:
    """Whether what is computed of a parameter now can be used later, by whoever calls then."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and all(type(number) is int for number in size)  # not a tracer's symbol
        and type(parameter) is nn.Parameter
        and not parameter.is_inference()  # has no version
        # Other streams would not wait for it, and a graph's memory is the graph's.
        and (
            not parameter.is_cuda
            or torch.cuda.current_stream(parameter.device)
            == torch.cuda.default_stream(parameter.device)
        )
    )


def resize_bicubic(grid: Tensor, height: int, width: int) -> Tensor:
    """Resizes channels-last maps, bicubic, ``align_corners=False``, no antialiasing.

    The numbers of ``torch.nn.functional.interpolate`` by two small matrix products, along y and along
    x: its backward adds with atomics, for milliseconds a step on a GPU.

    Args:
        grid: (B, G, H, C).
        height: rows of the result.
        width: columns of the result.

    Returns:
        (B, height, width, C) in the grid's type; half types are computed in float32.
    """
    dtype = torch.promote_types(grid.dtype, torch.float32)
    rows, columns = (
        bicubic_weights(old, new, grid.device, dtype)
        for old, new in zip(grid.shape[1:3], (height, width), strict=True)
    )
    with without_autocast(grid):
        # (B, height, H * C), then (B, height, width, C)
        resized = (rows @ grid.to(dtype).flatten(2)).unflatten(2, (-1, grid.shape[3]))
        return (columns @ resized).to(grid.dtype)


def bicubic_weights(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What each of ``old`` places counts at each of ``new`` places of an axis: (new, old)."""
    with torch.no_grad():
        unit = torch.eye(old, device=device, dtype=dtype)[None, None]
        return F.interpolate(unit, size=(new, old), mode="bicubic", align_corners=False)[0, 0]
