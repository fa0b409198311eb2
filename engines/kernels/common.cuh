// Everything the steps share, from the bottom up: the GPU's own instructions, the type operands have, arithmetic without
// threads, and the kernels that run before and after the cross term (around.cuh).
//
// The host build of the tests replaces the first part (tests/kernels/host.hpp) and compiles the rest as it stands.
// Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
#pragma once

// ---------------------------------------------------------------------------------------------------------------------
// 1. Instructions that only a GPU has, in PTX: asynchronous copies, 2^x on the special-function unit, half precision
// and matrix products.

#ifdef __CUDACC__

// Dynamic shared memory, 16-byte aligned.
#define MDMF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float half_value(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// 2^x within 2 ulp in one instruction. Results below float32's normal numbers become 0.
__device__ __forceinline__ float exp2_special(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// Copy 16 bytes from global to shared memory, both 16-byte aligned. They have arrived once their group was waited for
// and all threads have met.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    const unsigned address = unsigned(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Close this thread's group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most PENDING of this thread's latest groups are still under way.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

__device__ __forceinline__ float shuffle_xor(float value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

#if defined(MDMF_BF16)
#define MDMF_PRODUCT "m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MDMF_PRODUCT "m16n8k16.row.col.f32.f16.f16.f32"
#endif

// sums[m][n] += a[m] . b[n] for a whole warp: M x N products of 16 rows by 8 columns to a depth of 16, with the fragment
// layout of the PTX ISA. A register holds two operands.
template <int M, int N>
__device__ __forceinline__ void multiply(float (&sums)[M][N][4], const unsigned (&a)[M][4], const unsigned (&b)[N][2]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            float(&c)[4] = sums[m][n];
#if __CUDA_ARCH__ >= 800
            asm volatile("mma.sync.aligned." MDMF_PRODUCT " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                         : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
#else
            // Turing multiplies fp16 only, to a depth of 8: first halves of both fragments, then second halves.
#pragma unroll
            for (int half = 0; half < 2; ++half)
                asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                             "{%0,%1,%2,%3};"
                             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                             : "r"(a[m][2 * half]), "r"(a[m][2 * half + 1]), "r"(b[n][half]));
#endif
        }
    }
}

#endif

// ---------------------------------------------------------------------------------------------------------------------
// 2. The operand: the type that signatures are multiplied in, chosen by -DMDMF_FP32, -DMDMF_FP16X2, -DMDMF_FP16 or
// -DMDMF_BF16.
//
// In fp16x2 a value v is the sum of two fp16 numbers, X = fp16(v) and x' = fp16(v - X), which float32 holds exactly. A
// row is its WIDTH numbers X, then its WIDTH numbers x'. v is off by at most 2^-22 of it or 2^-25, whichever is more.
//
// All values are clamped to +-LIMIT, so that no sum of MDMF_WIDTH products overflows float32: a signature that is far
// away stays far away instead of becoming NaN. Infinities are not valid signatures and become NaN.

#ifndef MDMF_WIDTH
#error "compile with -DMDMF_WIDTH=64, 128 or 256"
#endif
constexpr int WIDTH = MDMF_WIDTH;
static_assert(WIDTH == 64 || WIDTH == 128 || WIDTH == 256, "no such width");

#if defined(MDMF_FP32)
using Operand = float;
constexpr float LIMIT = 7.2057594e16f;  // 2^56
constexpr int DEGREE = 6;
__device__ __forceinline__ Operand to_operand(float value) { return value; }
__device__ __forceinline__ float to_float(Operand value) { return value; }
#elif defined(MDMF_FP16) || defined(MDMF_FP16X2)
using Operand = unsigned short;
constexpr float LIMIT = 65504.0f;
#if defined(MDMF_FP16X2)
constexpr int DEGREE = 6;
#else
constexpr int DEGREE = 4;
#endif
__device__ __forceinline__ Operand to_operand(float value) { return half_bits(value); }
__device__ __forceinline__ float to_float(Operand value) { return half_value(value); }
#elif defined(MDMF_BF16)
using Operand = unsigned short;
constexpr float LIMIT = 7.2057594e16f;
constexpr int DEGREE = 4;
// Round to nearest, ties to even, in integer arithmetic, so that processors without bfloat16 round alike.
__device__ __forceinline__ Operand to_operand(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return Operand(bits >> 16 | 0x40);
    return Operand((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
__device__ __forceinline__ float to_float(Operand value) { return __uint_as_float(unsigned(value) << 16); }
#else
#error "compile with -DMDMF_FP32, -DMDMF_FP16X2, -DMDMF_FP16 or -DMDMF_BF16"
#endif

// Operands that hold one value.
#if defined(MDMF_FP16X2)
constexpr int PARTS = 2;
#else
constexpr int PARTS = 1;
#endif
constexpr int ROW_OPERANDS = WIDTH * PARTS;
constexpr int ROW_BYTES = ROW_OPERANDS * int(sizeof(Operand));

__device__ __forceinline__ float clamped(float value) {
    const float bounded = value > LIMIT ? LIMIT : value < -LIMIT ? -LIMIT : value;
    return bounded;
}

// Round value k of a row, store it and return what it was rounded to.
__device__ __forceinline__ float store_value(Operand* row, int k, float value) {
    const Operand rounded = to_operand(value);
    row[k] = rounded;
    const float first = to_float(rounded);
    if constexpr (PARTS == 1) {
        return first;
    } else {
        const Operand rest = to_operand(value - first);
        row[WIDTH + k] = rest;
        return first + to_float(rest);
    }
}

// Value k of a row.
__device__ __forceinline__ float load_value(const Operand* row, int k) {
    if constexpr (PARTS == 1) {
        return to_float(row[k]);
    } else {
        return to_float(row[k]) + to_float(row[WIDTH + k]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. Arithmetic without threads: which tiles belong to which slice and block, where a tile's words lie in shared
// memory, and 2^x without the special-function unit.
//
//   2^x = 2^n (1 + f q(f)),   n = round(x),   f = x - n in [-1/2, 1/2]

// A half-open range of tiles, slices or rows.
struct Range {
    int first;
    int last;
};

// Split `count` things into `parts` contiguous ranges whose sizes differ by at most one, and return range `part`.
__device__ __forceinline__ Range share_of(int count, int parts, int part) {
    const int each = count / parts, longer = count % parts;
    const int first = part * each + min(part, longer);
    return {first, first + each + (part < longer ? 1 : 0)};
}

// The place in shared memory, in 16-byte words, of word `word` of a point. A point has WORDS of them, a whole number of
// 128 bytes. Odd points swap the halves of each 128 bytes: eight threads read four consecutive words of two consecutive
// points at a time, and so find them in 32 different banks.
template <int WORDS> __device__ __forceinline__ int place_of(int point, int word) {
    static_assert(WORDS % 8 == 0, "odd points would not begin where even ones do");
    return point * WORDS + (word ^ (point % 2 * 4));
}

// Lowest exponent. At and below it 2^x is 0 in float32 without subnormal numbers.
constexpr float LOWEST = -127.0f;

// Relative error: 3e-6 with 4 coefficients, 2e-9 (below float32's own rounding) with 6. The coefficients are
// least-squares fits, reweighted until the error's peaks were level. The constant is exactly 1, so that 2^0 is 1.
template <int DEGREE> __device__ __forceinline__ float exp2_fraction(float f) {
    static_assert(DEGREE == 4 || DEGREE == 6, "no such polynomial");
    if constexpr (DEGREE == 4) {
        float p = 9.58285294e-3f;
        p = fmaf(p, f, 5.59064262e-2f);
        p = fmaf(p, f, 2.40240991e-1f);
        p = fmaf(p, f, 6.93124175e-1f);
        return fmaf(p, f, 1.0f);
    } else {
        float p = 1.5353362e-4f;
        p = fmaf(p, f, 1.33988739e-3f);
        p = fmaf(p, f, 9.61843692e-3f);
        p = fmaf(p, f, 5.55033237e-2f);
        p = fmaf(p, f, 2.40226477e-1f);
        p = fmaf(p, f, 6.93147182e-1f);
        return fmaf(p, f, 1.0f);
    }
}

// 2^x for x <= 0 on the FMA pipes only. Below -126 it is off by at most 2^-126. At LOWEST and below it is 0.
template <int DEGREE> __device__ __forceinline__ float exp2_polynomial(float x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
    const float bounded = fmaxf(x, LOWEST);
    const float shifted = bounded + SHIFT;
    const float mantissa = exp2_fraction<DEGREE>(bounded - (shifted - SHIFT));
    // Add n to the bits of the exponent. For n = -127 the result is 0.
    return __uint_as_float(__float_as_uint(mantissa) + (__float_as_uint(shifted) << 23));
}

constexpr int LANES = 32;  // of a warp

#include "around.cuh"
