"""comer-d2 predict: images in, pictures, COCO results and label maps out."""

import argparse
import csv
import glob
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...weights.files import write_atomically
from ..cli import command_parser, refuse_unused, run_tool
from ..data.images import IMAGE_ENDINGS
from ..data.panoptic_png import write_panoptic_png
from ..errors import UserError
from ..image_input import ImageLike
from ..new_folder import check_writable
from ..predictor import Predictor, Threshold
from ..results import Result
from ..tiling import OVERLAP, tiled
from ..video import (
    VIDEO_ENDINGS,
    BadVideo,
    frame_count,
    frame_rate,
    is_stream,
    read_frames,
    write_frames,
)
from ..visualization.sheet import save_picture
from .coco_ids import CocoIds, coco_ids
from .model import add_model_arguments, model_of, threshold_of

SMALLEST_PICTURE = 640  # pixels: smaller images are enlarged, so that labels can be read
CSV_COLUMNS = ("image", "class", "score", "x0", "y0", "x1", "y1")
SHOWN = 8  # objects that are named of each image
EXAMPLE = """\
examples:
  comer-d2 predict output/ photo.jpg
  comer-d2 predict output/ film.mp4
  comer-d2 predict output/ /dev/video0 --seconds 60             # or rtsp://..., http://...
  comer-d2 predict output/ 'photos/**/*.jpg' --csv --yolo
  comer-d2 predict output/ photos/ --json --threshold 0.3 --output found/
  comer-d2 predict model.pth --config-file my_config.py a.jpg b.jpg --device cuda --dtype bfloat16"""


def parse_arguments(argv: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Read the command line; see EXAMPLE."""
    parser = command_parser(
        prog,
        "Predict images and draw what was found.",
        EXAMPLE,
    )
    add_model_arguments(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, patterns, folders that are searched for them; videos, cameras and addresses of "
        "videos (comer_d2[video])",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        help="folder; a picture gets its image's path in it (%(default)s)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    parser.add_argument(
        "--json",
        action="store_true",
        help="write the objects to results.json, COCO's results format",
    )
    parser.add_argument(
        "--csv", action="store_true", help="write the objects to objects.csv, a line each"
    )
    parser.add_argument(
        "--yolo",
        action="store_true",
        help="write labels/*.txt: class number, centre and size of the box as shares, score",
    )
    parser.add_argument(
        "--seconds", type=float, help="of each video or camera (all, or until Ctrl-C)"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO json whose image and category ids --json takes (the config's validation data)",
    )
    parser.add_argument(
        "--label-maps",
        action="store_true",
        help="write label_maps/*.png: class numbers of a semantic model, segment ids of a panoptic "
        "one (in COCO's colours, with panoptic.json)",
    )
    parser.add_argument("--batch-size", type=int, help="images of one size together (1)")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="predict large images in tiles of this side (objects: needs comer_d2[supervision])",
    )
    parser.add_argument("--overlap", type=float, help=f"share of a tile that is shared ({OVERLAP})")
    return parser.parse_args(argv)


def find_images(inputs: Sequence[str], output: Path) -> dict[str, Path]:
    """The images that inputs stand for, and the path of each below the output folder.

    Args:
        inputs: files, patterns of them, and folders that are searched for images.
        output: a folder that is not searched: it may lie in one of the inputs.

    Returns:
        Path of an image -> its path relative to the folder that all inputs share, so that equal
        names in different folders stay apart.

    Raises:
        UserError: an input does not exist, a folder holds no image, or a picture would replace an image.
    """
    files: dict[Path, None] = {}
    folders = []
    for name in _expanded(inputs):
        path = Path(name)
        if path.is_dir():
            folders.append(path.resolve())
            found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_ENDINGS]
            found = [p for p in found if not p.resolve().is_relative_to(output.resolve())]
            videos = sum(p.suffix.lower() in VIDEO_ENDINGS for p in path.rglob("*"))
            if not found:
                hint = f"; it has {videos} videos: name them" if videos else ""
                raise UserError(f"no images in '{name}' ({', '.join(IMAGE_ENDINGS)}){hint}")
            if videos:
                print(f"{videos} videos in '{name}' are left out: name them", file=sys.stderr)
            files |= dict.fromkeys(found)
        elif path.exists():
            folders.append(path.resolve().parent)
            files[path] = None
        else:
            raise UserError(f"'{name}' does not exist")
    root = os.path.commonpath(folders)
    # Not resolved themselves: a link is named as it is called.
    relative = {str(p): Path(os.path.relpath(p.parent.resolve() / p.name, root)) for p in files}
    replaced = [p for p, end in relative.items() if (output / end).resolve() == Path(p).resolve()]
    if replaced:
        raise UserError(f"the picture of '{replaced[0]}' would replace it: choose another --output")
    return relative


def _expanded(inputs: Sequence[str]) -> list[str]:
    """Patterns -> the files that they fit; a name that exists is none."""
    names = []
    for name in inputs:
        if os.path.exists(name) or not glob.has_magic(name):
            names.append(name)
            continue
        fitting = [n for n in sorted(glob.glob(name, recursive=True)) if os.path.isfile(n)]
        if not fitting:
            raise UserError(f"'{name}' fits no file")
        names += fitting
    return names


class Writer:
    """Writes what was found in images, one after the other; `close` writes the jsons.

    Args:
        output: folder.
        places: path of each image -> path of its picture below `output`.
        pictures: whether pictures are drawn.
        objects: whether results.json is written.
        label_maps: whether label maps are written.
        table: whether objects.csv is written.
        yolo: whether labels/*.txt are written.
        image_id: path of an image -> its number.
    """

    def __init__(
        self,
        output: Path,
        places: dict[str, Path],
        *,
        pictures: bool,
        objects: bool,
        label_maps: bool,
        table: bool,
        yolo: bool,
        image_id: Callable[[str], int],
    ) -> None:
        self.output = output
        self.places = places
        self.stems = Counter(place.with_suffix("") for place in places.values())
        self.pictures = pictures
        self.label_maps = label_maps
        self.yolo = yolo
        self.image_id = image_id
        self.objects: list[dict[str, Any]] | None = [] if objects else None
        self.rows: list[list[Any]] | None = [] if table else None
        self.panoptic: list[dict[str, Any]] = []
        output.mkdir(parents=True, exist_ok=True)

    def write(self, result: Result) -> None:
        """Write what was found in one image."""
        place = self.places[result.file_name]
        if self.pictures:
            scale = max(1.0, SMALLEST_PICTURE / max(result.image.shape[:2]))
            path = self.output / place
            if path.suffix.lower() not in Image.registered_extensions():
                path = path.with_name(f"{path.name}.png")
            save_picture(result.draw(scale=scale), path)
        if self.objects is not None:
            entries = result.to_coco(self.image_id(result.file_name))
            self.objects += [{**entry, "file_name": result.file_name} for entry in entries]
        if self.rows is not None or self.yolo:
            alone = self.stems[place.with_suffix("")] == 1
            label = place.with_suffix(".txt") if alone else place.with_name(f"{place.name}.txt")
            self._write_boxes(result, Path("labels") / label)
        if self.label_maps:
            self._write_label_map(result, Path("label_maps") / place.with_name(f"{place.name}.png"))

    def _write_boxes(self, result: Result, place: Path) -> None:
        found = list(
            zip(result.classes.tolist(), result.boxes.tolist(), result.scores.tolist(), strict=True)
        )
        if self.rows is not None:
            self.rows += [
                [result.file_name, result.class_names[label], round(score, 4), *(round(v, 2) for v in box)]
                for label, box, score in found
            ]  # fmt: skip
        if self.yolo:
            height, width = result.image.shape[:2]
            lines = []
            for label, (x0, y0, x1, y1), score in found:
                shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)  # fmt: skip
                lines.append(" ".join([str(label), *(f"{v:.6f}" for v in shares), f"{score:.4f}"]))
            path = self.output / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _write_label_map(self, result: Result, place: Path) -> None:
        path = self.output / place
        if result.segments is None:
            deep = len(result.class_names) > 256
            save_picture(
                Image.fromarray(result.label_map.astype(np.uint16 if deep else np.uint8)), path
            )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_panoptic_png(result.segments, path)
        ids = result.category_ids or range(1, len(result.class_names) + 1)
        self.panoptic.append(
            {
                "image_id": self.image_id(result.file_name),
                "file_name": place.relative_to("label_maps").as_posix(),
                "segments_info": [
                    {"id": s["id"], "category_id": ids[s["category_id"]], "score": s["score"]}
                    for s in result.segments_info
                ],
            }
        )

    def close(self) -> None:
        """Write the jsons and the table of all that was found so far."""
        if self.rows is not None:
            with (self.output / "objects.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([CSV_COLUMNS, *self.rows])
        if self.objects is not None:
            self._write_json("results.json", self.objects)
            print(f"{len(self.objects)} objects -> {self.output / 'results.json'}")
        if self.panoptic:
            self._write_json("panoptic.json", {"annotations": self.panoptic})

    def _write_json(self, name: str, content: Any) -> None:
        text = json.dumps(content)
        write_atomically(self.output / name, lambda temporary: temporary.write_text(text))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        0; 1 when an image could not be read.
    """
    return run_tool(partial(predict, parse_arguments(argv, prog)), prog)


def predict(args: argparse.Namespace) -> int:
    """Predict what a command line names; see `main`."""
    if args.seconds is not None and not 0 < args.seconds < math.inf:
        raise UserError(f"--seconds {args.seconds:g}: has to be more than 0")
    streams = [name for name in args.images if is_stream(name)]
    files = [name for name in args.images if not is_stream(name)]
    places = find_images(files, args.output) if files else {}
    videos = [name for name in places if Path(name).suffix.lower() in VIDEO_ENDINGS]
    destinations = {name: args.output / f"{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_')}.mp4" for name in streams}  # fmt: skip
    for name in videos:
        place = places.pop(name)
        destinations[name] = args.output / (place if place.suffix.lower() == ".mp4" else f"{place}.mp4")  # fmt: skip
    refuse_unused(args, unused_options(args, videos=bool(destinations)))
    check_writable(args.output)
    model = model_of(args)
    check_tasks(args, model)
    threshold = threshold_of(args, model)
    bad: list[str] = []

    def skip(source: ImageLike, error: UserError) -> None:
        bad.append(str(error))
        tqdm.write(f"left out: {error}", file=sys.stderr)

    for name, destination in destinations.items():
        try:
            count = draw_video(model, name, destination, threshold, skip, args.seconds)
        except BadVideo as error:
            skip(name, error)
        else:
            print(f"{name}: {count} frames" + (f" -> {destination}" if count else ""))
    if places:
        predict_images(args, model, threshold, places, skip)
    if bad:
        total = len(places) + len(destinations)
        print(f"{len(bad)} of {total} could not be read to the end", file=sys.stderr)
    return 1 if bad else 0


def unused_options(args: argparse.Namespace, *, videos: bool) -> dict[str, str]:
    """The options that would have no effect, as `refuse_unused` takes them."""
    unused = {}
    if videos:
        options = ("json", "csv", "yolo", "label_maps", "no_pictures", "tile", "batch_size")
        unused |= dict.fromkeys(options, "images alone, without a video")
    else:
        unused["seconds"] = "videos and cameras"
    if args.tile is None:
        unused["overlap"] = "--tile"
    else:
        unused["batch_size"] = "whole images, not for --tile"
    if not (args.json or args.label_maps):
        unused["annotations"] = "--json and --label-maps"
    return unused


def check_tasks(args: argparse.Namespace, model: Predictor) -> None:
    """Raises UserError if the model does not predict what is to be written."""
    for name in ("json", "csv", "yolo"):
        if getattr(args, name) and "instance" not in model.tasks:
            raise UserError(f"--{name}: this model finds no objects")
    if args.label_maps and model.tasks == ("instance",):
        raise UserError("--label-maps: this model predicts no label maps")


def predict_images(
    args: argparse.Namespace,
    model: Predictor,
    threshold: Threshold,
    places: dict[str, Path],
    skip: Callable[[ImageLike, UserError], None],
) -> None:
    """Predict images, and write what a command line asks for.

    Args:
        args: the command line.
        model: what predicts.
        threshold: objects below this score are left out.
        places: path of each image -> path of its picture below the output folder.
        skip: called with an image that cannot be read.
    """
    ids = CocoIds()
    if args.json or (args.label_maps and "panoptic" in model.tasks):
        ids = coco_ids(model.cfg, model.class_names, args.annotations)
        model.category_ids = ids.category_ids
        if ids.category_ids is None:
            print("The data's json is not here: category ids count the model's classes from 1.")
    writer = Writer(
        args.output,
        places,
        pictures=not args.no_pictures,
        objects=args.json,
        label_maps=args.label_maps,
        table=args.csv,
        yolo=args.yolo,
        image_id=ids.image_id,
    )
    if args.tile is None:
        batch_size = 1 if args.batch_size is None else args.batch_size
        results = model.stream(places, threshold=threshold, batch_size=batch_size, on_error=skip)
    else:
        overlap = OVERLAP if args.overlap is None else args.overlap
        results = tiled(model, places, args.tile, overlap, threshold=threshold, on_error=skip)
    done = 0
    bar = tqdm(total=len(places), unit="image", disable=len(places) < 2)
    try:
        for result in results:
            writer.write(result)
            done += 1
            tqdm.write(f"{result.file_name}: {_shortened(result.names()) or 'nothing'}")
            bar.update(1)
    finally:  # what was found before Ctrl-C or an error is kept
        bar.close()
        writer.close()
    if args.json and ids.images and ids.new:
        print(f"{len(ids.new)} images are not in the data's json: numbered after its images.")
    print(f"{done} images -> {args.output}")


def draw_video(
    model: Predictor,
    name: str,
    destination: Path,
    threshold: Threshold,
    skip: Callable[[ImageLike, UserError], None],
    seconds: float | None = None,
) -> int:
    """Draw what is found in each frame of a video, into a new one; Ctrl-C ends it there, and so does damage.

    Args:
        model: what predicts.
        name: of the video, the camera, or an address.
        destination: the new video.
        threshold: objects below this score are left out.
        skip: called where the video cannot be read further.
        seconds: how much of it; None: all.

    Returns:
        The number of frames.

    Raises:
        BadVideo: it cannot be opened.
    """
    rate, total = frame_rate(name), frame_count(name) or None
    frames = read_frames(name)
    if seconds is not None:
        total = min(total or sys.maxsize, max(1, round(seconds * rate)))
        frames = islice(frames, total)
    results = model.stream(frames, threshold=threshold)
    bar = tqdm(results, Path(name).name, total, unit="frame")

    def pictures() -> Iterator[np.ndarray]:
        try:
            for result in bar:
                yield np.array(result.draw())
        except KeyboardInterrupt:  # what was drawn so far is kept
            tqdm.write("stopped", file=sys.stderr)
        except BadVideo as error:
            skip(name, error)

    return write_frames(destination, pictures(), rate)


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
