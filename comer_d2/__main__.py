"""comer-d2: one command for what is done with models and data."""

import importlib
import os
import sys
from collections.abc import Sequence

# name: (module with main(argv, name) -> exit code, what it does)
COMMANDS = {
    "train": ("comer_d2.d2.cli", "train the model that a config describes"),
    "eval": ("comer_d2.d2.commands.evaluate", "measure a model on its test data"),
    "predict": ("comer_d2.d2.commands.predict", "images in; pictures, COCO json, label maps out"),
    "compare": ("comer_d2.d2.commands.compare", "draw ground truth beside prediction"),
    "report": ("comer_d2.d2.commands.report", "a page on a run: curves, tables, worst images"),
    "export": (
        "comer_d2.d2.commands.export",
        "a model as ONNX, a program of PyTorch, a folder to share",
    ),
    "push": ("comer_d2.d2.commands.push", "a folder of export to the Hugging Face hub"),
    "demo": ("comer_d2.d2.commands.demo", "a page to try a model on photos"),
    "data check": ("comer_d2.d2.commands.check", "read all of a config's data, list what is wrong"),
    "data show": ("comer_d2.d2.commands.show_data", "draw a config's images with annotations"),
    "data convert": (
        "comer_d2.d2.commands.convert_data",
        "YOLO, VOC, LabelMe ... to COCO, and back",
    ),
    "data split": ("comer_d2.d2.commands.split_data", "a COCO json to a training and a val part"),
    "convert": ("comer_d2.d2.commands.convert", "convert a checkpoint for a config's model"),
    "replay": ("comer_d2.d2.commands.replay", "compute a training step again that went wrong"),
    "info": ("comer_d2.info", "versions, devices, and what computes the operator"),
}


def usage(group: str = "") -> str:
    """What `comer-d2 --help` prints.

    Args:
        group: the first word of the commands to list, such as "data"; "": all of them.
    """
    listed = {name: what for name, (_, what) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, listed))
    return "\n".join(
        [
            "usage: comer-d2 COMMAND ... (comer-d2 COMMAND --help explains each)",
            "",
            *(f"  {name:{width}}  {what}" for name, what in listed.items()),
            *([] if group else ["", "example: comer-d2 predict output/ photo.jpg"]),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command's name and its arguments; None: this process's.

    Returns:
        The exit code: 0; 1 when something failed; 2 for a mistake in the command or a file.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    group = any(name.startswith(f"{arguments[0]} ") for name in COMMANDS)
    if group and arguments[1:] in ([], ["-h"], ["--help"]):
        print(usage(arguments[0]))
        return 0 if arguments[1:] else 2
    words = 2 if group else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        print(f"comer-d2: there is no command '{name}'\n\n{usage()}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    try:
        command = importlib.import_module(module)
    except ImportError as error:  # Detectron2, or an optional package: it says what to do
        print(f"comer-d2 {name}: error: {error}", file=sys.stderr)
        return 2
    try:
        code = command.main(arguments[words:], f"comer-d2 {name}")
        sys.stdout.flush()
    except BrokenPipeError:  # as of `comer-d2 info | head -3`
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
