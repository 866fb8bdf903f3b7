"""A page to try a model on photos, made with gradio."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .predictor import DEFAULT_THRESHOLD, Predictor
from .results import Result
from .visualization.sheet import save_picture

if TYPE_CHECKING:
    import gradio

LARGEST_SCALE = 4.0  # of small images, so that labels can be read
READABLE = 640  # pixels: pictures are enlarged to this


def build_demo(model: Predictor, title: str, examples: Sequence[Path] = ()) -> gradio.Blocks:
    """A page with an image, a threshold, what was found, and files to take away.

    Args:
        model: what predicts.
        title: the headline.
        examples: images to begin with.

    Returns:
        The page; its `launch` serves it.

    Raises:
        UserError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs gradio: pip install 'comer_d2[demo]'") from error
    folder = tempfile.TemporaryDirectory(prefix="comer_d2_demo_")

    def predict(image: str | None, threshold: float, task: str | None) -> tuple[Any, ...]:
        if image is None:
            return None, None, "", None
        began = time.perf_counter()
        try:
            result = model(image, threshold=threshold)
        except UserError as error:  # of what is no picture
            raise gradio.Error(str(error).removeprefix(f"{image}: ")) from error
        seconds = time.perf_counter() - began
        task = task or result.task
        height, width = result.image.shape[:2]
        scale = min(LARGEST_SCALE, max(1.0, READABLE / max(height, width)))
        picture = result.draw(task=task, scale=scale)
        told = f"{seconds:.2f} s on {model.device} for {width} x {height} pixels"
        own = Path(tempfile.mkdtemp(dir=folder.name))  # two visitors at once have files apart
        files = [str(save_picture(picture, own / "found.png"))]
        if result.boxes is not None:
            path = own / "found.json"
            path.write_text(json.dumps(result.to_coco()))
            files.append(str(path))
        return picture, table_of(result, task), told, files

    tasks = model.tasks
    with gradio.Blocks(title=title) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column():
                # The file as it is: gradio's own conversion makes 16 bits white.
                image = gradio.Image(type="filepath", image_mode=None, label="Image")
                threshold = gradio.Slider(
                    0,
                    1,
                    DEFAULT_THRESHOLD,
                    step=0.01,
                    label="Lowest score of an object",
                    visible=tasks != ("semantic",),
                )
                task = gradio.Radio(
                    tasks, value=tasks[0], label="What to draw", visible=len(tasks) > 1
                )
                run = gradio.Button("Find", variant="primary")
            with gradio.Column():
                picture = gradio.Image(type="pil", label="Found", format="png")
                told = gradio.Markdown()
                table = gradio.Dataframe(headers=["class", "score", "pixels"], label="Objects")
                files = gradio.File(label="Files", file_count="multiple")
        given, shown = [image, threshold, task], [picture, table, told, files]
        run.click(predict, given, shown, api_name="predict")
        for changed in (image.upload, threshold.release, task.input):
            changed(predict, given, shown, api_visibility="private")
        if examples:
            gradio.Examples(
                [[str(path)] for path in examples],
                [image],
                shown,
                fn=lambda chosen: predict(chosen, DEFAULT_THRESHOLD, tasks[0]),
                run_on_click=True,
                cache_examples=False,
            )
    return page


def table_of(result: Result, task: str) -> list[list[Any]]:
    """Class, score and size of everything that is drawn.

    Args:
        result: of one image.
        task: what is drawn.

    Returns:
        Rows: best score first, the largest class of a label map first.
    """
    names = result.class_names
    if task == "semantic":
        labels, pixels = np.unique(result.label_map, return_counts=True)
        order = np.argsort(-pixels).tolist()
        return [[names[labels[i]], None, int(pixels[i])] for i in order]
    if task == "panoptic":
        found = [
            [
                names[s["category_id"]],
                round(s["score"], 3),
                int((result.segments == s["id"]).sum()),
            ]
            for s in result.segments_info
        ]
        return sorted(found, key=lambda row: -row[2])
    x0, y0, x1, y1 = result.boxes.T
    sizes = (x1 - x0) * (y1 - y0) if result.masks is None else result.masks.sum((1, 2))
    rows = zip(result.classes.tolist(), result.scores.tolist(), sizes.tolist(), strict=True)
    return [[names[label], round(score, 3), round(size)] for label, score, size in rows]
