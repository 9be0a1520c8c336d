"""Fused Triton kernels; each is held to the eager torch code that it stands for. What they move: README.md beside this.

ModuleNotFoundError: no triton.
"""

try:
    import triton as _triton  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "fused kernels need triton: pip install 'odediff[triton]' (Linux only)", name="triton"
    ) from None
