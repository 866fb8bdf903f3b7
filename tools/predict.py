#!/usr/bin/env python3
"""Detect objects in image files: draw them, and optionally write them as COCO results."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.d2.cli import config_of, config_parser, run_tool
    from comer_d2.d2.predictor import Predictor, coco_results, confident, read_rgb
    from comer_d2.d2.visualization.instances import draw_instances, save_picture
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"predict.py: error: {error}")

SMALLEST_PICTURE = 640  # pixels: smaller images are enlarged, so that labels can be read


def parse_arguments() -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's model_final.pth, for example")
    parser.add_argument("--output", default="predictions", help="folder (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that is shown")
    parser.add_argument("--json", action="store_true", help="also write <output>/results.json")
    parser.add_argument("--override", dest="opts", action="append", default=[], metavar="key=value")
    parser.add_argument("images", nargs="+")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    predictor = Predictor(config_of(args), args.checkpoint)
    results = []
    for name in args.images:
        image = read_rgb(name)
        found = confident(predictor(image), args.threshold)
        results += coco_results(found, name, predictor.class_names)
        scale = max(1.0, SMALLEST_PICTURE / max(image.shape[:2]))
        picture = draw_instances(image, found, predictor.class_names, scale=scale)
        path = save_picture(picture, Path(args.output) / f"{Path(name).stem}.png")
        classes = [predictor.class_names[label] for label in found.pred_classes.tolist()]
        shown = ", ".join(f"{c} {s:.2f}" for c, s in zip(classes, found.scores.tolist()))
        print(f"{name}: {shown or 'nothing'} -> {path}")
    if args.json:
        path = Path(args.output) / "results.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results))
        part.replace(path)
        print(f"{len(results)} detections -> {path} (COCO results by file name and class index)")


if __name__ == "__main__":
    sys.exit(run_tool(main))
