"""One row of a plan in one pass over memory: what `step` and `prediction` do between two calls of the network.

    out = u + g (v - u)                                            u, v: the halves of a guided batch
    x0' = clamp(p0 x + q0 out, low, high),  d = m x0' + p x + q out     with limits; without them d = p x + q out
    x'  = a x + b_0 d + sum_{0<j<K} b_j d_j + c z                  z: drawn inside, with the bits of `philox`
    in' = c_in x'                                                  what the network gets next, twice if guided

Coefficients are a row of a table on the device, float32 cast once from float64, and which row it is stands there too,
so that launches differ in nothing and a captured graph serves every row. `advance_row` reads the number; `next_row`, of
one program, after it on the same stream, raises it and sets the network's time. Between kernels of a stream there is no
race, whereas the last program of `advance_row` to finish could raise it only behind a fence in every program.

The state is overwritten in place, each element by the program that read it; d goes to slot (row mod K) of a ring, from
which this row reads nothing. What has weight 0 is not read, so no row reads a d that is not there yet, and a d that no
later row reads is not written. K, limits, guidance, noise and in' select the code; all else is data.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..philox import MASK, Streams
from .noise import normal

if TYPE_CHECKING:
    from ..plans import Plan
    from ..prediction import Prediction

COLUMNS = ("a", "c", "guidance", "c_in", "kept", "p", "q", "m", "p0", "q0", "low", "high")  # b_0 .. b_{K-1} follow
WIDTH = tl.constexpr(len(COLUMNS))
BLOCK = 512  # 4 elements a thread: 16 bytes of float32 at a time, and no exchange between threads
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RANKS = {torch.channels_last: 3, torch.channels_last_3d: 4}  # of one sample


@triton.jit(do_not_specialize=["size"])
def advance_row(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    ring_ptr: tl.tensor,
    in_ptr: tl.tensor,
    table_ptr: tl.tensor,
    row_ptr: tl.tensor,
    streams_ptr: tl.tensor,
    numel: tl.tensor,
    size: tl.tensor,
    channels: tl.tensor,
    K: tl.constexpr,
    LIMITED: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """x, ring and in of the row at row_ptr; ring_ptr, in_ptr and streams_ptr are None where there are none of them."""
    row = tl.load(row_ptr)
    at = table_ptr + row * (WIDTH + K)
    program = tl.program_id(0)
    e = element(program, BLOCK)
    inside = e < numel
    x = tl.load(x_ptr + e, inside)
    out = tl.load(out_ptr + e, inside).to(tl.float32)
    if GUIDED:
        out += tl.load(at + 2) * (tl.load(out_ptr + numel + e, inside).to(tl.float32) - out)
    p, q = tl.load(at + 5), tl.load(at + 6)
    if LIMITED:
        x0 = tl.load(at + 8) * x + tl.load(at + 9) * out
        x0 = tl.clamp(x0, tl.load(at + 10), tl.load(at + 11), propagate_nan=tl.PropagateNan.ALL)
        d = tl.load(at + 7) * x0 + p * x + tl.where(q != 0, q * out, 0.0)  # out may be infinite, x0 is not
    else:
        d = p * x + q * out
    new = tl.load(at) * x + tl.load(at + WIDTH) * d
    if K > 1:
        for j in tl.static_range(1, K):
            b = tl.load(at + WIDTH + j)
            slot = ((row + K - j) % K).to(tl.int64) * numel
            new += b * tl.load(ring_ptr + slot + e, e < tl.where(b != 0, numel, 0), other=0.0)
        kept = e < tl.where(tl.load(at + 4) != 0, numel, 0)
        tl.store(ring_ptr + (row % K).to(tl.int64) * numel + e, d, kept)
    if streams_ptr is not None:
        c = tl.load(at + 1)
        if c != 0:
            new += c * drawn(program, streams_ptr, row, size, channels, inside, BLOCK)
    tl.store(x_ptr + e, new, inside)
    if in_ptr is not None:
        fed = (tl.load(at + 3) * new).to(in_ptr.dtype.element_ty)
        tl.store(in_ptr + e, fed, inside)
        if GUIDED:
            tl.store(in_ptr + numel + e, fed, inside)


@triton.jit
def element(program: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Where the program's elements are in memory: in int64, for tensors of 2^31 elements and more."""
    return program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def drawn(
    program: tl.tensor,
    streams_ptr: tl.tensor,
    row: tl.tensor,
    size: tl.tensor,
    channels: tl.tensor,
    inside: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The noise of the program's elements.

    Element r of a sample's memory is element (r mod channels) (size / channels) + r div channels in C order, which is
    r itself where channels = 1.
    """
    start = program.to(tl.int64) * BLOCK
    place = (start % size).to(tl.int32) + tl.arange(0, BLOCK)
    stream = streams_ptr + (start // size + place // size) * 4
    r = place % size
    index = (r % channels) * (size // channels) + r // channels
    k0 = tl.load(stream, inside, other=0).to(tl.uint32, bitcast=True)
    k1 = tl.load(stream + 1, inside, other=0).to(tl.uint32, bitcast=True)
    low = tl.load(stream + 2, inside, other=0).to(tl.uint32, bitcast=True)
    high = tl.load(stream + 3, inside, other=0).to(tl.uint32, bitcast=True)
    return normal((index >> 2).to(tl.uint32), (row + 1).to(tl.uint32), low, high, k0, k1, index & 3)


@triton.jit(do_not_specialize=["rows", "n"])
def next_row(
    row_ptr: tl.tensor, t_ptr: tl.tensor, times_ptr: tl.tensor, rows: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """row = (row + 1) mod rows, times = t[row], (n,); after the last row all is as before the first."""
    row = (tl.load(row_ptr) + 1) % rows
    t = tl.load(t_ptr + row)
    start = 0
    while start < n:  # the interpreter of triton 3.6 has no range of tensors
        k = start + tl.arange(0, BLOCK)
        tl.store(times_ptr + k, t, k < n)
        start += BLOCK
    tl.debug_barrier()  # every thread has read the number
    tl.store(row_ptr, row)


def table(prediction: "Prediction", plan: "Plan", c_in: ArrayLike | None = None) -> NDArray[np.float32]:
    """The plan's coefficients in `COLUMNS`, then b: (S, 12 + K) float32.

    Column c_in of row i scales the input of row i + 1; kept says whether a later row reads d[i].
    """
    rows, depth = plan.b.shape
    scale = np.ones(rows) if c_in is None else np.asarray(c_in, np.float64)
    if scale.shape != (rows,) or not np.isfinite(scale).all():
        raise ValueError(f"c_in must hold {rows} finite numbers, one for each row of the plan, got shape {scale.shape}")
    p = prediction.of_plan(plan)
    limited = prediction.limits is not None
    low, high = prediction.limits or (0.0, 0.0)
    m, p_d, q_d = np.array([row.back if limited else (0.0, *row.to_d) for row in p]).T
    p_0, q_0 = np.array([row.to_x0 for row in p]).T
    kept = [any(plan.b[i + j, j] for j in range(1, min(depth, rows - i))) for i in range(rows)]
    guidance = 1.0 if prediction.guidance is None else prediction.guidance
    columns = {"a": plan.a, "c": plan.c, "guidance": guidance, "c_in": np.append(scale[1:], 1.0), "kept": kept}
    columns |= {"p": p_d, "q": q_d, "m": m, "p0": p_0, "q0": q_0, "low": low, "high": high}
    spread = [np.broadcast_to(np.asarray(columns[name], np.float64), rows) for name in COLUMNS]
    return np.column_stack([*spread, plan.b]).astype(np.float32)


class Stage:
    """The rows of a plan for a batch of n samples, in buffers of its own.

        stage.begin(x, streams)
        for _ in range(plan.nfe): stage(net(stage.input, stage.times))

    input: what the network gets, (n, *shape) of `dtype`, or (2 n, *shape) if guided, the unconditional half first.
    times: (n,) or (2 n,), int64 for a model that knows whole times only, else float32.  x: the state, float32.
    All keep their place from call to call, and a call does nothing on the host that a CUDA graph would lack. A graph of
    a whole run begins with `rewind()` and serves every later `load(x, streams)`.
    prediction: P, with guidance, limits and model. Guidance of None, 0 or 1 is one half.  n: how many samples.
    dtype: of the network, float32, float16 or bfloat16; None, the model's.  device: CUDA; None, the model's.
    c_in: (S,) scales of the network's input, one a row.  memory_format: of every tensor, torch.contiguous_format,
    torch.channels_last or torch.channels_last_3d.
    ValueError: no GPU, another dtype or memory format, dynamic thresholding, samples of 2^31 elements, c_in of another
    length; see `Prediction.of_plan`.
    """

    def __init__(
        self,
        prediction: "Prediction",
        plan: "Plan",
        n: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        c_in: ArrayLike | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        model = prediction.model
        dtype = (model.dtype or torch.float32) if dtype is None else dtype
        device = model.device if device is None else torch.device(device)
        _check(prediction, n, dtype, device, memory_format)
        self._current: AbstractContextManager[Any] = (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        )
        self.plan, self._format, self._limited = plan, memory_format, prediction.limits is not None
        self._guided = prediction.guidance not in (None, 0, 1)
        self._channels = 1 if memory_format == torch.contiguous_format else model.shape[0]
        self._table = torch.from_numpy(table(prediction, plan, c_in)).to(device)
        self._c_in = 1.0 if c_in is None else float(np.asarray(c_in, np.float64)[0])
        kind = torch.int64 if model.integer_times else torch.float32
        self._t = torch.from_numpy(plan.t.copy()).to(device, kind)
        self._row = torch.zeros(1, dtype=torch.int32, device=device)
        calls = 2 * n if self._guided else n
        self.times = torch.empty(calls, dtype=kind, device=device)
        self.x = torch.empty(n, *model.shape, device=device, memory_format=memory_format, dtype=torch.float32)
        self._feeds = self._guided or c_in is not None or dtype != torch.float32
        shape = (calls, *model.shape)
        self.input = (
            torch.empty(shape, device=device, memory_format=memory_format, dtype=dtype) if self._feeds else self.x
        )
        ring = plan.depth * self.x.numel() if plan.depth > 1 else 0
        self._ring = torch.empty(ring, device=device, dtype=torch.float32) if ring else None
        self._streams = torch.zeros(n, 4, device=device, dtype=torch.int32) if plan.stochastic else None

    def begin(self, x: Tensor, streams: Streams | None = None) -> None:
        """`load`, then `rewind`: go to row 0 with the state x."""
        self.load(x, streams)
        self.rewind()

    def load(self, x: Tensor, streams: Streams | None = None) -> None:
        """Take the state x, (n, *shape) float32, whose samples draw their rows' noise from `streams`; wait for nothing.

        ValueError: another shape or dtype, or not as many streams as samples where the plan adds noise.
        """
        if x.shape != self.x.shape or x.dtype != torch.float32:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype}, expected {tuple(self.x.shape)} in float32; for proofs in float64 "
                'use backend="torch"'
            )
        if self._streams is not None:
            if streams is None or len(streams) != len(x):
                got = "none" if streams is None else len(streams)
                raise ValueError(f"the plan adds noise: give {len(x)} streams, one for each sample, not {got}")
            halves = [part >> np.uint64(s) & np.uint64(MASK) for part in (streams.seed, streams.index) for s in (0, 32)]
            words = torch.from_numpy(np.stack(halves, 1).astype(np.uint32).view(np.int32))
            pinned = words.pin_memory() if self.x.is_cuda else words  # else the copy would wait for the device
            self._streams.copy_(pinned, non_blocking=True)
        self.x.copy_(x)

    def rewind(self) -> None:
        """Go to row 0 with the state that is in `x`."""
        self._row.zero_()
        self.times.copy_(self._t[:1].expand_as(self.times))
        if self._feeds:
            for half in self.input.split(len(self.x)):
                half.copy_(self.x * self._c_in)

    def __call__(self, out: Tensor) -> None:
        """One row, of the network's output like `input`, of any of the three dtypes.

        ValueError: another shape, dtype, device or memory format.
        """
        if out.shape != self.input.shape or out.dtype not in DTYPES or out.device != self.x.device:
            raise ValueError(
                f"the network returned {tuple(out.shape)} {out.dtype} on {out.device}; expected "
                f"{tuple(self.input.shape)} in float32, float16 or bfloat16 on {self.x.device}"
            )
        if not out.is_contiguous(memory_format=self._format):
            raise ValueError(
                f"the network's output has strides {out.stride()}, which are not of {self._format}: make the stage "
                "with the memory_format that the network returns"
            )
        numel = self.x.numel()
        with self._current:
            advance_row[(-(-numel // BLOCK),)](
                self.x,
                out,
                self._ring,
                self.input if self._feeds else None,
                self._table,
                self._row,
                self._streams,
                numel,
                numel // len(self.x),
                self._channels,
                K=self.plan.depth,
                LIMITED=self._limited,
                GUIDED=self._guided,
                BLOCK=BLOCK,
                **OPTIONS,
            )
            next_row[(1,)](self._row, self._t, self.times, self.plan.nfe, len(self.times), BLOCK=128, num_warps=1)


def refusal(prediction: "Prediction", dtype: torch.dtype) -> tuple[str, str] | None:
    """Why no stage can run this prediction with a network of `dtype`, and the remedy; None: one can."""
    shape = prediction.model.shape
    if prediction.threshold is not None:
        reason = "the fused kernel has no dynamic thresholding, whose quantile needs a whole sample at once"
        return f"threshold = {prediction.threshold:g}: {reason}", 'use backend="torch" or "compile", or clip instead'
    if dtype not in DTYPES:
        return f"dtype = {dtype}: the fused kernel takes float32, float16, bfloat16", 'use backend="torch"'
    if math.prod(shape) >= 2**31 - BLOCK:
        reason = f"the fused kernel takes samples of less than 2^31 - {BLOCK} elements"
        return f"shape = {shape}: {reason}", 'use backend="torch"'
    return None


def _check(
    prediction: "Prediction", n: int, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> None:
    if (refused := refusal(prediction, dtype)) is not None:
        raise ValueError("; ".join(refused))
    if device.type != "cuda" and isinstance(advance_row, triton.JITFunction):
        raise ValueError(f'the fused kernel runs on a CUDA GPU, not on {device}; use backend="torch"')
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n = {n!r}: how many samples, a whole number from 1 up")
    shape = prediction.model.shape
    if memory_format != torch.contiguous_format and RANKS.get(memory_format) != len(shape):
        raise ValueError(f"memory_format = {memory_format} does not fit samples of shape {shape}")
