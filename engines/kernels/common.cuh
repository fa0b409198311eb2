// Everything the three steps share, from the bottom up: the GPU's own instructions, the type operands have, arithmetic
// without threads, and the three kernels that run before and after the cross term.
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

// ---------------------------------------------------------------------------------------------------------------------
// 4. The two kernels around the cross term.
//
//   prepare   out = scale (x - centre),  half_norms = |out|^2 / 2        then k(a, b) = 2^(a.b - |a|^2/2 - |b|^2/2)
//             within[b][n] = 1/N sum_n' k(out[b][n], out[b][n'])
//   finish    contributions = within - 2 unit sum_slices partial + self_term,   mmd2[b] = 1/N sum_n contributions[b][n]
//
// Rows are signatures, image after image: row = image N + patch. The order of every sum depends only on the image and
// the length of the bank, so an image's bits do not depend on its batch.

constexpr int LANES = 32;
constexpr int PREPARE_THREADS = 256;
constexpr int PREPARE_WARPS = PREPARE_THREADS / LANES;
constexpr int PREPARED_ROWS = 32;                 // most rows of a block
constexpr int COLUMN_THREADS = 4;                 // threads that share a column, and rows it is compared with at a time
constexpr int COLUMNS = PREPARE_THREADS / COLUMN_THREADS;
constexpr int COLUMN_WORDS = WIDTH / 4 / COLUMN_THREADS;  // float4 of a column that a thread holds
constexpr int FINISH_THREADS = 512;
constexpr int FINISHED_ROWS = 64;                 // at a time
constexpr int FINISH_PARTS = FINISH_THREADS / FINISHED_ROWS;
constexpr int FINISH_LOADS = 16;                  // of a thread at a time

// Centre, scale and clamp a number of a signature. value * 0 is 0 for a finite value, else NaN.
__device__ __forceinline__ float prepared(float value, float centre, float scale) {
    return fmaf(value, 0.0f, clamped(scale * (value - centre)));
}

// What store_value would return. The compiler drops the row.
__device__ __forceinline__ float rounded(float value) {
    Operand row[ROW_OPERANDS];
    return store_value(row, 0, value);
}

// Load a thread's words of a signature, every COLUMN_THREADS-th from its own on, prepared and rounded.
__device__ __forceinline__ void load_column(float4 (&words)[COLUMN_WORDS], const float* __restrict__ x,
                                            const float* __restrict__ centre, float scale) {
    const int first = threadIdx.x % COLUMN_THREADS;
    if (reinterpret_cast<size_t>(x) % sizeof(float4) == 0) {
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i)
            words[i] = reinterpret_cast<const float4*>(x)[first + i * COLUMN_THREADS];
    } else {
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i) {
            const float* from = x + 4 * (first + i * COLUMN_THREADS);
            words[i] = {from[0], from[1], from[2], from[3]};
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMN_WORDS; ++i) {
        const float4 centres = reinterpret_cast<const float4*>(centre)[first + i * COLUMN_THREADS];
        words[i].x = rounded(prepared(words[i].x, centres.x, scale));
        words[i].y = rounded(prepared(words[i].y, centres.y, scale));
        words[i].z = rounded(prepared(words[i].z, centres.z, scale));
        words[i].w = rounded(prepared(words[i].w, centres.w, scale));
    }
}

// Add up four sums over the four threads of a column. Thread i returns sum i.
__device__ __forceinline__ float sum_of_column(const float (&sums)[COLUMN_THREADS]) {
    const bool second = threadIdx.x % 2 != 0, last = threadIdx.x % 4 >= 2;
    const float even = (last ? sums[2] : sums[0]) + shuffle_xor(last ? sums[0] : sums[2], 2);
    const float odd = (last ? sums[3] : sums[1]) + shuffle_xor(last ? sums[1] : sums[3], 2);
    return (second ? odd : even) + shuffle_xor(second ? even : odd, 1);
}

// A block takes some of an image's rows and compares them with all of its rows, the columns. Grid: (images, chunks of
// rows). x (images * patches, d), centre (d,), out like x, half_norms and within (images * patches,).
//
// Four threads hold a column in registers while the block's rows pass, four at a time, from shared memory. All threads
// of a warp read the same row. Differences are taken directly, so k(x, x) is exactly 1.
extern "C" __global__ void __launch_bounds__(PREPARE_THREADS, WIDTH > 128 ? 1 : 2)
    mdmf_prepare(const float* __restrict__ x, const float* __restrict__ centre, float scale, int patches,
                 Operand* __restrict__ out, float* __restrict__ half_norms, float* __restrict__ within) {
    constexpr int WORDS = WIDTH / 4;
    constexpr int PITCH = COLUMNS + 1;
    __shared__ float4 rows[PREPARED_ROWS * WORDS];
    __shared__ float sums[PREPARED_ROWS * PITCH];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int part = threadIdx.x % COLUMN_THREADS, column = threadIdx.x / COLUMN_THREADS;
    const size_t image = static_cast<size_t>(blockIdx.x) * patches;
    const Range mine = share_of(patches, gridDim.y, blockIdx.y);
    const int here = mine.last - mine.first;
    const auto load = [&](float4(&words)[COLUMN_WORDS], int patch) {
        load_column(words, x + (image + min(patch, patches - 1)) * WIDTH, centre, scale);
    };
    // In a small image the block's rows are among the first columns. In a large one they are loaded apart.
    const bool small = patches <= COLUMNS;
    const int first = small ? column : mine.first + column;
    float4 own[COLUMN_WORDS];
    load(own, first);
    const int staged = first - mine.first;
    float norm = 0.0f;
    if (staged >= 0 && staged < here) {
        float norms[4] = {};
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i) {
            const int word = i * COLUMN_THREADS + part;
            const float values[4] = {own[i].x, own[i].y, own[i].z, own[i].w};
            rows[staged * WORDS + word] = own[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                norms[j] = fmaf(values[j], values[j], norms[j]);
                // Rounding what is rounded already changes nothing.
                store_value(out + (image + first) * ROW_OPERANDS, 4 * word + j, values[j]);
            }
        }
        norm = (norms[0] + norms[1]) + (norms[2] + norms[3]);
    }
    norm += shuffle_xor(norm, 1);
    norm += shuffle_xor(norm, 2);
    if (part == 0 && staged >= 0 && staged < here) half_norms[image + first] = 0.5f * norm;
    __syncthreads();
    // Warps without a column leave the loop together.
    for (int start = 0; start + column / 8 * 8 < patches; start += COLUMNS) {
        if (start > 0 || !small) load(own, start + column);
        // Rows past the last hold anything. Nobody reads their sums.
        for (int at = 0; at < here; at += COLUMN_THREADS) {
            float squared[COLUMN_THREADS] = {};
#pragma unroll
            for (int i = 0; i < COLUMN_WORDS; ++i) {
#pragma unroll
                for (int j = 0; j < COLUMN_THREADS; ++j) {
                    const float4 other = rows[(at + j) * WORDS + i * COLUMN_THREADS + part];
                    const float a = own[i].x - other.x, b = own[i].y - other.y;
                    const float c = own[i].z - other.z, d = own[i].w - other.w;
                    squared[j] = fmaf(d, d, fmaf(c, c, fmaf(b, b, fmaf(a, a, squared[j]))));
                }
            }
            const float kernel = exp2_special(-0.5f * sum_of_column(squared));
            float& sum = sums[(at + part) * PITCH + column];
            if (start + column < patches) sum = start > 0 ? sum + kernel : kernel;
        }
    }
    __syncthreads();
    for (int at = warp; at < here; at += PREPARE_WARPS) {
        float sum = 0.0f;
        for (int i = lane; i < min(COLUMNS, patches); i += LANES) sum += sums[at * PITCH + i];
#pragma unroll
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (lane == 0) within[image + mine.first + at] = sum / float(patches);
    }
}

// A block takes an image. partial (slices, images * patches), within (images * patches,), contributions
// (images, patches), mmd2 (images,).
//
// A thread takes a row and every FINISH_PARTS-th slice, and loads FINISH_LOADS of them before it adds them up: what
// this kernel takes is the latency of its loads.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS, 1)
    mdmf_finish(const float* __restrict__ partial, const float* __restrict__ within, int slices, int images,
                int patches, float unit, double self_term, double* __restrict__ contributions,
                double* __restrict__ mmd2) {
    __shared__ double sums[FINISH_THREADS];
    const size_t rows = static_cast<size_t>(images) * patches;
    const int part = threadIdx.x / FINISHED_ROWS;
    double sum = 0.0;
    for (int start = 0; start < patches; start += FINISHED_ROWS) {
        const int patch = start + threadIdx.x % FINISHED_ROWS;
        const size_t row = static_cast<size_t>(blockIdx.x) * patches + min(patch, patches - 1);
        const float own = within[row];
        double cross = 0.0;
        for (int first = part; first < slices; first += FINISH_PARTS * FINISH_LOADS) {
            float loaded[FINISH_LOADS];
#pragma unroll
            for (int i = 0; i < FINISH_LOADS; ++i) {
                const int slice = first + i * FINISH_PARTS;
                // A load under a condition would be moved to the sum below, which waits for it.
                const float value = partial[min(slice, slices - 1) * rows + row];
                loaded[i] = slice < slices ? value : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < FINISH_LOADS; ++i) cross += double(loaded[i]);
        }
        sums[threadIdx.x] = cross;
        __syncthreads();
        if (part == 0 && patch < patches) {
#pragma unroll
            for (int i = 1; i < FINISH_PARTS; ++i) cross += sums[threadIdx.x + i * FINISHED_ROWS];
            const double contribution = double(own) - 2.0 * double(unit) * cross + self_term;
            contributions[row] = contribution;
            sum += contribution;
        }
        __syncthreads();
    }
    if (part == 0) sums[threadIdx.x] = sum;
    for (int half = FINISHED_ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) mmd2[blockIdx.x] = sums[0] / patches;
}
