"""What one core of this machine can do at most, measured: the floor under every latency of a compiled ranker.

Products per second of the instructions that the kernels use, with operands in registers, and bytes per second from memory. Needs the
compiler of the native backend.
"""

from __future__ import annotations

import ctypes

import msgspec

from burnish.host import Host
from burnish.native import toolchain
from burnish.native.kernels import linear, vector

TEMPLATE = r"""
template <class Dot> static double products_in(const typename Dot::A *a, const typename Dot::W *w, int64_t steps, int32_t *sink) {
  constexpr int CHAINS = 16; // more than latency times throughput of any of the instructions
  typename Dot::Acc acc[CHAINS];
  UNROLL
  for (int i = 0; i < CHAINS; i++) acc[i] = typename Dot::Acc{};
  for (int64_t k = 0; k < steps; k++) {
    auto x = Dot::spread(a + k % 2 * 64);
    UNROLL
    for (int i = 0; i < CHAINS; i++) Dot::step(acc[i], x, w);
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
  return products_in<DotU8>((const uint8_t *)in, (const int8_t *)in, steps, sink);
}
PUBLIC double bf16_products(int64_t steps, const char *in, int32_t *sink) {
  return products_in<DotBF16>((const uint16_t *)in, (const uint16_t *)in, steps, sink);
}
PUBLIC double fp32_products(int64_t steps, const char *in, int32_t *sink) {
  return products_in<DotF32>((const float *)in, (const float *)in, steps, sink);
}
PUBLIC double bytes_read(const char *memory, int64_t bytes, int32_t *sink) {
  I sum[4] = {};
  for (int64_t i = 0; i + 4 * (int64_t)sizeof(I) <= bytes; i += 4 * sizeof(I)) UNROLL
  for (int j = 0; j < 4; j++) sum[j] += load((const int32_t *)(memory + i) + j * LANES);
  UNROLL
  for (int j = 0; j < 4; j++) store(sink + j * LANES, sum[j]);
  return (double)bytes;
}
"""


class Floor(msgspec.Struct, frozen=True):
    """Peaks of one core: multiply-accumulates per second by operand, bytes per second from memory that fits no cache."""

    host: Host
    isa: str
    int8_macs: float
    bf16_macs: float
    fp32_macs: float
    memory_bytes: float


def measure(isa: str | None = None, rounds: int = 200) -> Floor:
    """The floor of the core this runs on, the best of `rounds`; pin the process first. BuildError without a compiler."""
    import time

    import numpy as np

    host = Host.here()
    isa = isa or host.isa
    text = vector.TEMPLATE + linear.TEMPLATE + TEMPLATE
    library = ctypes.CDLL(str(toolchain.build(text, isa)))
    sink = np.zeros(1024, np.int32)
    memory = np.ones(256 << 20, np.uint8)
    operand = memory.ctypes.data

    def best(name: str, *arguments: int, times: int = rounds) -> float:
        function = getattr(library, name)
        function.restype = ctypes.c_double
        function.argtypes = [*[ctypes.c_int64] * len(arguments), ctypes.c_void_p]
        rates = []
        for _ in range(times):
            begin = time.perf_counter()
            done = function(*arguments, sink.ctypes.data)
            rates.append(done / (time.perf_counter() - begin))
        return max(rates)

    steps = 20_000
    return Floor(
        host,
        isa,
        int8_macs=best("int8_products", steps, operand),
        bf16_macs=best("bf16_products", steps, operand),
        fp32_macs=best("fp32_products", steps, operand),
        memory_bytes=best("bytes_read", operand, memory.nbytes, times=5),
    )
