"""comer-d2 demo: a page to try a model."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, run_tool
from ..demo import build_demo
from ..errors import UserError
from .model import add_model_arguments, model_of, validation_images

EXAMPLES = 6  # photos to begin with
EXAMPLE = """\
examples:
  comer-d2 demo output/
  comer-d2 demo output/ --host 0.0.0.0 --port 8080       # for others in the network"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; it serves until Ctrl-C.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = command_parser(
        prog,
        "Serve a page: drop a photo, slide the threshold, see what is found.",
        EXAMPLE,
    )
    add_model_arguments(parser, thresholds=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s); 0: a free one")
    return run_tool(partial(serve, parser.parse_args(argv)), prog)


def serve(args: argparse.Namespace) -> None:
    """Serve the page of the model that a command line names."""
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: from 0 (a free one) to {2**16 - 1}")
    model = model_of(args)
    examples = validation_images(model, EXAMPLES)
    page = build_demo(model, f"comer_d2: {Path(args.model).resolve().name}", examples)
    allowed = sorted({str(path.parent) for path in examples})
    try:
        # None: gradio looks for a free one; it cannot serve on 0.
        page.launch(server_name=args.host, server_port=args.port or None, allowed_paths=allowed)
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: the port is in use, or the address not this machine's; "
            "--port 0 takes a free port"
        ) from error
