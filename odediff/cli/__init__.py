"""The command line: `odediff sample | plan | info | tune | train | export`, the same as `python -m odediff`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from . import export, info, plan, sample, train, tune

_DESCRIPTION = """\
Diffusion sampling as tables: a solver on a noise schedule compiles to a plan,
and one loop runs any plan."""

_EPILOG = """\
start here:
  odediff sample                        64 digits from the bundled model, in samples.png
  odediff sample --solver unipc_3 --nfe 8
  odediff plan rk4 --nfe 20             what a solver does, as a table
  odediff info                          the solvers and the bundled models
  odediff tune mnist --nfe 8 --out plans  a plan fitted to a model
  odediff train --data mnist.npz --out runs/mnist
  odediff export mnist --nfe 10 --out digits.onnx

`odediff COMMAND --help` explains one command."""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"odediff: error: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; it loads no torch."""
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="odediff", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"odediff {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (sample, plan, info, tune, train, export):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 2 after one line on stderr that says what to change."""
    parser = make_parser()
    parser.set_defaults(run=lambda _: parser.print_help())
    args = parser.parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as in `odediff plan rk4 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"odediff: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "odediff").startswith("odediff"):
            raise  # a defect of this package, not of the machine
        needs = f"this command needs {error.name}: pip install {error.name}"
        print(f"odediff: error: {error if 'pip install' in str(error) else needs}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # `train` and `tune` say in it how to go on
        print(f"odediff: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0
