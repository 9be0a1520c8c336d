"""`python -m odediff` is the `odediff` command."""

from odediff.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
