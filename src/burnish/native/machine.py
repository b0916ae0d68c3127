"""What a program's text says of the machine that it is compiled for, and how the library finds out whether it is on one."""

from __future__ import annotations

from burnish.host import ISAS

# instruction set -> what a compiler defines when it may use it
DEFINED = {
    "avx512bf16": "__AVX512BF16__",
    "avx512vnni": "__AVX512VNNI__",
    "avx512": "__AVX512F__",
    "avx2": "__AVX2__",
    "i8mm": "__ARM_FEATURE_MATMUL_INT8",
    "dotprod": "__ARM_FEATURE_DOTPROD",
    "armv7": "__ARM_ARCH_7A__",
    "neon": "__ARM_NEON",
    "simd128": "__wasm_simd128__",
    "riscv64": "__riscv",
}

# CPU flag -> leaf, subleaf, register (0 eax, 1 ebx, 2 ecx) and bit of cpuid: Intel's manual, volume 2A. xcr0: 6 for ymm, 0xe6 for zmm
CPUID = {
    "fma": (1, 0, 2, 12),
    "f16c": (1, 0, 2, 29),
    "avx2": (7, 0, 1, 5),
    "bmi2": (7, 0, 1, 8),
    "avx512f": (7, 0, 1, 16),
    "avx512dq": (7, 0, 1, 17),
    "avx512bw": (7, 0, 1, 30),
    "avx512vl": (7, 0, 1, 31),
    "avx512_vnni": (7, 0, 2, 11),
    "avx512_bf16": (7, 1, 0, 5),
}
# CPU flag -> AT_HWCAP (16) or AT_HWCAP2 (26) and bit: Linux, asm/hwcap.h of aarch64, and of arm for neon
HWCAP = {"asimd": (16, 1), "asimddp": (16, 20), "i8mm": (26, 13), "neon": (16, 12)}

LACKS = r"""
#if defined(__x86_64__)
#include <cpuid.h>
#define PLAIN __attribute__((noinline, target("no-avx,no-bmi2"))) // what asks must run on any machine
PLAIN static bool has(const char *flag) {
  static const struct {
    const char *flag;
    uint32_t leaf, subleaf, at, bit;
  } all[] = {CPUID};
  for (const auto &one : all) {
    if (strcmp(flag, one.flag) != 0) continue;
    uint32_t r[4] = {}, first[4] = {}, low = 0, high = 0;
    __get_cpuid(1, &first[0], &first[1], &first[2], &first[3]);
    if (!(first[2] >> 27 & 1)) return false; // the system saves no vector registers
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const uint32_t saved = strncmp(flag, "avx512", 6) == 0 ? 0xe6 : 6;
    return (low & saved) == saved && __get_cpuid_count(one.leaf, one.subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[one.at] >> one.bit & 1);
  }
  return true;
}
#elif (defined(__aarch64__) || defined(__arm__)) && defined(__linux__)
#include <sys/auxv.h>
static bool has(const char *flag) {
  static const struct {
    const char *flag;
    unsigned long kind;
    int bit;
  } all[] = {HWCAP};
  for (const auto &one : all)
    if (strcmp(flag, one.flag) == 0) return getauxval(one.kind) >> one.bit & 1;
  return true;
}
#else
static bool has(const char *) { return true; }
#endif
#ifndef PLAIN
#define PLAIN
#endif
PUBLIC PLAIN const char *ranker_lacks(void) {
  static const char *const needed[] = {NEEDED nullptr};
  for (const char *const *flag = needed; *flag; flag++)
    if (!has(*flag)) return *flag;
  return nullptr;
}
"""
LACKS = LACKS.replace("CPUID", ", ".join(f'{{"{flag}", {leaf}, {sub}, {at}, {bit}}}' for flag, (leaf, sub, at, bit) in CPUID.items()))
LACKS = LACKS.replace("HWCAP", ", ".join(f'{{"{flag}", {kind}, {bit}}}' for flag, (kind, bit) in HWCAP.items()))


def macros() -> str:
    """Text that defines ISA, the instruction set that it is compiled for, and the CPU flags it needs: FLAGS in JSON, NEEDED in C."""
    lines: list[str] = []
    for isa, macro in DEFINED.items():
        flags = sorted(ISAS[isa][1])
        lines += [f"#{'elif' if lines else 'if'} defined({macro})", f'#define ISA "{isa}"']
        lines.append('#define FLAGS "' + ", ".join(f'\\"{flag}\\"' for flag in flags) + '"')
        lines.append("#define NEEDED " + "".join(f'"{flag}", ' for flag in flags))
    return "\n".join([*lines, "#else", '#define ISA "scalar"', '#define FLAGS ""', "#define NEEDED", "#endif"])
