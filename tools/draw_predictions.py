#!/usr/bin/env python3
"""Draw the first images of a config's test dataset: ground truth beside prediction, on one sheet."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.d2.cli import add_overrides, config_of, config_parser, run_tool
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.predictor import Predictor, compare_with_ground_truth
    from comer_d2.d2.visualization.instances import picture_sheet, save_picture
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"draw_predictions.py: error: {error}")


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's model_final.pth, for example")
    parser.add_argument("--output", default="predictions.png", help="picture (%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of images (%(default)s)")
    parser.add_argument("--columns", type=int, default=3, help="pairs in a row (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that is shown")
    parser.add_argument("--title", default="", help="headline; the config's name by default")
    add_overrides(parser)
    args = parser.parse_intermixed_args()

    cfg = config_of(args)
    resolve_dataset(cfg)
    predictor = Predictor(cfg, args.checkpoint)
    name = cfg.dataloader.test.dataset.names
    pairs = compare_with_ground_truth(predictor, name, count=args.count, threshold=args.threshold)
    sheet = picture_sheet(
        pairs,
        title=args.title or Path(args.config_file).stem,
        subtitle=f"first {len(pairs)} images of {name}; score at least {args.threshold}",
        columns=args.columns,
    )
    print(f"Picture sheet: {save_picture(sheet, args.output)}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
