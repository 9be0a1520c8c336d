"""Fused Triton kernels; each is held to the eager torch code that it stands for. What they move: README.md beside this.

The kernel of a CPU, row.c, needs none of this: it is `odediff._row`, and `odediff.step` calls it.

ModuleNotFoundError: no triton.
"""

try:
    import triton as _triton  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "fused kernels need triton: pip install 'odediff[triton]' (Linux only)", name="triton"
    ) from None
