"""What the benchmarks measure with: time, memory of a process and its children, arithmetic, and the processor's best.

Memory is resident memory. Pages that hold nothing of a file (what a process has allocated) are added up over a process and
everything it has started; pages of files, mostly the libraries that all of them share, are counted once, at the largest.

Arithmetic is counted by ``torch.utils.flop_counter``, a multiplication and an addition as two: convolutions, matrix products,
attention, and with the formulas below also what it does not know (recurrent layers, attention on the CPU, the packed linear
layers of ``encoders.cpu_linear``). Fourier transforms and everything elementwise are left out.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.encoders.cpu_linear import PackedLinear, can_pack

__all__ = [
    "PeakMemory",
    "Stopwatch",
    "count_flops",
    "high_water_mb",
    "matrix_product_flops_per_s",
    "median",
    "processor_name",
    "resident_mb",
    "synchronise",
]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRODUCT_SIZE = {"cpu": 4096, "cuda": 8192}


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds of a ``with`` block, the device's work included.

    Attributes:
        seconds: what the last block took.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = math.nan

    def __enter__(self) -> Stopwatch:
        synchronise(self._device)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise(self._device)
        self.seconds = time.perf_counter() - self._started


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


# ------------------------------------------------------------------------------------------------------ memory


def _pages(process: str) -> tuple[int, int]:
    """Resident pages of a process: all, and those of files or shared memory; zeros if it has ended."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
    except (OSError, ValueError):
        return 0, 0
    return int(resident), int(shared)


def _tree(process: str) -> Iterator[str]:
    """A process and everything it has started."""
    yield process
    try:
        children = [
            child for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:  # it has just ended
        return
    for child in children:
        yield from _tree(child)


def resident_mb(process: int | None = None) -> float:
    """Resident memory of a process (this one, unless given) and its children in MB (2^20 bytes); see the module docstring."""
    pages = [_pages(name) for name in _tree(str(os.getpid() if process is None else process))]
    own = sum(resident - shared for resident, shared in pages)
    return (own + max(shared for _, shared in pages)) * _PAGE / 2**20


def high_water_mb() -> float:
    """The most memory, in MB, that this process alone has had resident since its program was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


class PeakMemory:
    """The largest :func:`resident_mb` seen during a ``with`` block; looked at every ``interval_s``, in a thread.

    Attributes:
        peak_mb: the largest value; MB.
    """

    def __init__(self, process: int | None = None, *, interval_s: float = 0.05) -> None:
        self._process = process
        self._interval_s = interval_s
        self._ended = threading.Event()
        self.peak_mb = 0.0

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.peak_mb = max(self.peak_mb, resident_mb(self._process))

    def __enter__(self) -> PeakMemory:
        self.peak_mb = max(self.peak_mb, resident_mb(self._process))
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak_mb = max(self.peak_mb, resident_mb(self._process))


# -------------------------------------------------------------------------------------------------- arithmetic


def _packed_linear_flops(inputs: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * inputs[-1]


def _cpu_attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products: [B, heads, T, D] with [B, heads, S, D], and the weights with the values."""
    *batch, queries, dim = query
    return 2 * math.prod(batch) * queries * key[-2] * (dim + value[-1])


def _mkldnn_rnn_flops(
    inputs: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * math.prod(inputs[:-1]) * (math.prod(weight) + math.prod(recurrent))


def _cudnn_rnn_flops(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) > 1)


def _further_formulas() -> dict[Any, Any]:
    """Operators that torch's counter has no formula for, as far as this torch has the operators."""
    found = {}
    for library, name, formula in (
        ("mkldnn", "_linear_pointwise", _packed_linear_flops),
        ("aten", "_scaled_dot_product_flash_attention_for_cpu", _cpu_attention_flops),
        ("aten", "mkldnn_rnn_layer", _mkldnn_rnn_flops),
        ("aten", "_cudnn_rnn", _cudnn_rnn_flops),
    ):
        operator = getattr(getattr(torch.ops, library), name, None)
        if operator is not None:
            found[operator] = formula
    return found


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of one call; see the module docstring for what is counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_further_formulas()) as counter:
        function()
    return int(counter.get_total_flops())


def matrix_product_flops_per_s(device: torch.device, precision: str, *, size: int | None = None) -> float:
    """The best that the device does at a square matrix product, FLOP/s, in this run.

    On a CPU the better of torch's own product and, in float32, oneDNN's with a packed weight: torch takes MKL for float32, which
    on an AMD processor is far from the best.

    Args:
        device: where.
        precision: ``float32`` or ``bf16``.
        size: rows and columns; 4096 on a CPU and 8192 on a GPU unless given.
    """
    size = size or _PRODUCT_SIZE.get(device.type, 4096)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: left @ right]
    linear = nn.Linear(size, size, bias=False).requires_grad_(False)
    if dtype == torch.float32 and device.type == "cpu" and can_pack(linear):
        packed = PackedLinear(linear)
        products.append(lambda: packed(left))
    best, watch = math.inf, Stopwatch(device)
    with torch.inference_mode():
        for product in products:
            for _ in range(4):  # the first one warms up, and is never the best
                with watch:
                    product()
                best = min(best, watch.seconds)
    return 2 * size**3 / best


def processor_name(device: torch.device) -> str:
    """What the machine calls its processor, or its GPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
