"""comer-d2 push: a folder of `comer-d2 export --format hub` to the Hugging Face hub."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, run_tool
from ..export.hub import push

EXAMPLE = """\
example:
  comer-d2 push shared/ user/screws          # after `hf auth login`"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = command_parser(
        prog,
        "Upload a model's folder to the Hugging Face hub.",
        EXAMPLE,
    )
    parser.add_argument("folder", type=Path, help="made by comer-d2 export --format hub")
    parser.add_argument("repository", help="user/name; a new one is private")
    parser.add_argument("--public", action="store_true", help="a new one is seen by everybody")
    args = parser.parse_args(argv)
    return run_tool(partial(upload, args), prog)


def upload(args: argparse.Namespace) -> None:
    """Upload what a command line names."""
    print(push(args.folder, args.repository, private=not args.public))
