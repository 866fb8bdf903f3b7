#!/usr/bin/env python3
"""Draw the first images of a config's test dataset: ground truth beside prediction, on one sheet."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Of torch and Detectron2 about each other; nothing a user could act on.
warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

try:
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.engine.config import load_config
    from comer_d2.d2.errors import UserError
    from comer_d2.d2.predictor import Predictor, compare_with_ground_truth
    from comer_d2.d2.visualization.instances import picture_sheet, save_picture
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"draw_predictions.py: error: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="a .py config, or a run's config.yaml")
    parser.add_argument("--checkpoint", required=True, help="a run's model_final.pth, for example")
    parser.add_argument("--output", default="predictions.png", help="picture (%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of images (%(default)s)")
    parser.add_argument("--columns", type=int, default=3, help="pairs in a row (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that is shown")
    parser.add_argument("--title", default="", help="headline; the config's name by default")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    args = parser.parse_args()

    cfg = load_config(args.config_file, args.opts)
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
    try:
        main()
    except UserError as error:
        sys.exit(f"draw_predictions.py: error: {error}")
