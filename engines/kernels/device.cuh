// What only a GPU has, in PTX: asynchronous copies, the special-function unit's 2^x, half precision, matrix products.
// The host build brings its own of each (tests/kernels/host.hpp) and skips this file.
#pragma once

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

// 2^x within 2 ulp, and 0 for results below float32's normal numbers: one instruction.
__device__ __forceinline__ float exp2_special(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// 16 bytes from global to shared memory, both 16-byte aligned; there once its group was waited for and all threads met.
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

// Wait until at most PENDING of this thread's latest groups are under way.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Have the compiler compute what follows from `bits` here, not once and for all before a loop.
__device__ __forceinline__ void recompute(unsigned& bits) { asm volatile("" : "+r"(bits)); }

__device__ __forceinline__ float shuffle_xor(float value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

#if defined(MDMF_FP16)
#define MDMF_PRODUCT "m16n8k16.row.col.f32.f16.f16.f32"
#elif defined(MDMF_BF16)
#define MDMF_PRODUCT "m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MDMF_PRODUCT "m16n8k8.row.col.f32.tf32.tf32.f32"
#endif

// sums[m][n] += a[m] . b[n] for a whole warp: M x N products of 16 rows by 8 columns, with the fragments that the PTX
// ISA lays out.  Two 16-bit operands a register (fp16, bf16) or one tf32; the depth is 16 or 8.
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
            // Turing has fp16 alone, to a depth of 8 at a time: the first halves of both fragments, then the second.
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
