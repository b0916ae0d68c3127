"""What one core of this machine can do at most, measured: the floor under every latency of a compiled ranker.

Products per second of the instructions that the kernels use, with operands in registers, and bytes per second read from each cache and
from memory. Needs the compiler of the native backend.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import msgspec
import numpy as np

from burnish.host import Host
from burnish.native import toolchain
from burnish.native.kernels import linear, vector

TEMPLATE = r"""
#if defined(__AVX512F__)
#define IN_REGISTERS(b) __asm__ volatile("" : "+v"(b))
#elif defined(__x86_64__)
#define IN_REGISTERS(b) __asm__ volatile("" : "+x"(b))
#elif defined(__ARM_NEON)
#define IN_REGISTERS(b) __asm__ volatile("" : "+w"(b))
#else
#define IN_REGISTERS(b) __asm__ volatile("" : "+m"(b))
#endif
template <class B> INL auto keep(B &b, int) -> decltype(b.low, void()) { // where two vectors hold LANES outputs
  IN_REGISTERS(b.low);
  IN_REGISTERS(b.high);
}
template <class B> INL void keep(B &b, long) { IN_REGISTERS(b); }
template <class Dot> static double products_in(const typename Dot::A *a, const typename Dot::W *w, int64_t steps, int32_t *sink) {
  constexpr int CHAINS = Dot::ROWS * Dot::VECTORS; // what a tile keeps in registers: more than latency times throughput
  typename Dot::Acc acc[CHAINS];
  UNROLL
  for (int i = 0; i < CHAINS; i++) acc[i] = typename Dot::Acc{};
  auto x = Dot::spread(a);
  auto b = Dot::weights(w);
  for (int64_t k = 0; k < steps; k++) {
    UNROLL
    for (int i = 0; i < CHAINS; i++) {
      keep(b, 0); // and the compiler does not know that it is the same one: no product is computed once for several sums
      Dot::step(acc[i], x, b);
    }
  }
  UNROLL
  for (int i = 0; i < CHAINS; i++) {
    auto sums = Dot::total(acc[i], {});
    memcpy(sink + i * LANES, &sums, sizeof sums);
  }
  return (double)steps * CHAINS * LANES * Dot::group;
}
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC double int8_products(int64_t steps, const char *in, int32_t *sink) {
  return products_in<DotU8>((const DotU8::A *)in, (const DotU8::W *)in, steps, sink);
}
PUBLIC double bf16_products(int64_t steps, const char *in, int32_t *sink) {
  return products_in<DotBF16>((const DotBF16::A *)in, (const DotBF16::W *)in, steps, sink);
}
PUBLIC double fp32_products(int64_t steps, const char *in, int32_t *sink) {
  return products_in<DotF32>((const DotF32::A *)in, (const DotF32::W *)in, steps, sink);
}
PUBLIC double bytes_read(int64_t times, const char *memory, int32_t *sink, int64_t bytes) {
  constexpr int APART = 8; // a cache line or two each
  I sum[APART] = {};
  for (int64_t k = 0; k < times; k++)
    for (int64_t i = 0; i + APART * (int64_t)sizeof(I) <= bytes; i += APART * sizeof(I)) UNROLL
  for (int j = 0; j < APART; j++) sum[j] += load((const int32_t *)(memory + i) + j * LANES);
  UNROLL
  for (int j = 0; j < APART; j++) store(sink + j * LANES, sum[j]);
  return (double)times * bytes;
}
"""
STEPS = 20_000
MEMORY = 256 << 20  # bytes that fit no cache
PRECISIONS = ("int8", "bf16", "fp32")


class Floor(msgspec.Struct, frozen=True):
    """Peaks of one core: multiply-accumulates per second by operand, bytes per second from each cache level and from memory."""

    host: Host
    isa: str
    int8_macs: float
    bf16_macs: float
    fp32_macs: float
    cache_bytes: tuple[float, ...]  # of host.cache_bytes, the nearest first
    memory_bytes: float

    def us(self, macs: float, nbytes: float, precision: str) -> float:
        """The least microseconds for products of a precision and weights that are read once: the longer of the two.

        Bytes come from the nearest cache that holds twice as many, since a model's other data lie there too.
        """
        levels = zip((*self.host.cache_bytes, None), (*self.cache_bytes, self.memory_bytes))
        rate = next(rate for held, rate in levels if held is None or 2 * nbytes <= held)
        return 1e6 * max(macs / getattr(self, f"{precision}_macs"), nbytes / rate)

    def facts(self) -> dict[str, Any]:
        """For people and JSON: 10^9 multiply-accumulates per second by operand, 10^9 bytes per second by where they come from."""
        gmacs = {name: getattr(self, f"{name}_macs") / 1e9 for name in PRECISIONS}
        gbytes = {f"L{level}": rate / 1e9 for level, rate in enumerate(self.cache_bytes, 1)} | {"memory": self.memory_bytes / 1e9}
        return {"cpu": self.host.cpu, "isa": self.isa, "gmacs": gmacs, "gbytes": gbytes}


class Meter:
    """The loops of one instruction set, each timed by the call; alternate them with what they are compared with."""

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa or Host.here().isa
        text = vector.TEMPLATE + linear.TEMPLATE + TEMPLATE
        self._library = ctypes.CDLL(str(toolchain.build(text, self.isa)))
        self._sink, self._operand = np.zeros(1 << 12, np.int32), aligned(1 << 12)

    def products(self, precision: str, steps: int = STEPS) -> float:
        """Multiply-accumulates per second of one call."""
        return self._rate(f"{precision}_products", steps, self._operand)

    def read(self, memory: np.ndarray) -> float:
        """Bytes per second of passes over an array, one or as many as take a few microseconds."""
        return self._rate("bytes_read", max(1, (1 << 20) // memory.nbytes), memory)

    def _rate(self, name: str, amount: int, array: np.ndarray) -> float:
        function = getattr(self._library, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        operand, sink, size = array.ctypes.data, self._sink.ctypes.data, array.nbytes
        begin = time.perf_counter_ns()
        done: float = function(amount, operand, sink, size)
        return 1e9 * done / (time.perf_counter_ns() - begin)


def measure(isa: str | None = None, rounds: int = 200) -> Floor:
    """The floor of the core this runs on, the best of `rounds`; pin the process first. BuildError without a compiler."""
    host, meter = Host.here(), Meter(isa)
    products = {name: max(meter.products(name) for _ in range(rounds)) for name in PRECISIONS}
    memory = aligned(MEMORY)
    halves = [memory[: min(held // 2, MEMORY // 8)] for held in host.cache_bytes]
    caches = tuple(max(meter.read(half) for _ in range(rounds)) for half in halves)
    read = max(meter.read(memory) for _ in range(5))
    return Floor(host, meter.isa, products["int8"], products["bf16"], products["fp32"], caches, read)


def aligned(nbytes: int) -> np.ndarray:
    """Bytes of 1 from a cache line's beginning on."""
    room = np.ones(nbytes + 64, np.uint8)
    skip = -room.ctypes.data % 64
    return room[skip : skip + nbytes]
