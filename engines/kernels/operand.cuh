// The type signatures are multiplied in, chosen when compiled: -DMDMF_FP32, -DMDMF_TF32, -DMDMF_FP16 or -DMDMF_BF16.
//
// tf32 keeps float32 in memory: step 3 splits every number in two when it multiplies.  Everything is clamped to
// +-LIMIT, so that no sum of MDMF_WIDTH products overflows float32 and a signature that is far away is far away, not
// NaN; infinities are no signatures, and become NaN.
#pragma once

#ifndef MDMF_WIDTH
#error "compile with -DMDMF_WIDTH=64, 128 or 256"
#endif
constexpr int WIDTH = MDMF_WIDTH;
static_assert(WIDTH == 64 || WIDTH == 128 || WIDTH == 256, "no such width");

#if defined(MDMF_FP32) || defined(MDMF_TF32)
using Operand = float;
constexpr float LIMIT = 7.2057594e16f;  // 2^56
constexpr int DEGREE = 6;
__device__ __forceinline__ Operand to_operand(float value) { return value; }
__device__ __forceinline__ float to_float(Operand value) { return value; }
#elif defined(MDMF_FP16)
using Operand = unsigned short;
constexpr float LIMIT = 65504.0f;
constexpr int DEGREE = 4;
__device__ __forceinline__ Operand to_operand(float value) { return half_bits(value); }
__device__ __forceinline__ float to_float(Operand value) { return half_value(value); }
#elif defined(MDMF_BF16)
using Operand = unsigned short;
constexpr float LIMIT = 7.2057594e16f;
constexpr int DEGREE = 4;
// To the nearest, ties to even, in whole numbers: processors without bfloat16 round alike.
__device__ __forceinline__ Operand to_operand(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return Operand(bits >> 16 | 0x40);
    return Operand((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
__device__ __forceinline__ float to_float(Operand value) { return __uint_as_float(unsigned(value) << 16); }
#else
#error "compile with -DMDMF_FP32, -DMDMF_TF32, -DMDMF_FP16 or -DMDMF_BF16"
#endif

constexpr int ROW_BYTES = WIDTH * int(sizeof(Operand));

__device__ __forceinline__ float clamped(float value) {
    const float bounded = value > LIMIT ? LIMIT : value < -LIMIT ? -LIMIT : value;
    return bounded;
}
