// Instructions that only Hopper has (sm_90a), in PTX: bulk copies that report to barriers in shared memory, and matrix
// products of a whole warpgroup (128 threads) whose second operand lies in shared memory.
//
// The host build of the tests replaces this file's first part (tests/kernels/hopper_host.hpp).
// Reference: PTX ISA, "mbarrier", "cp.async.bulk", "wgmma" and "setmaxnreg".
#pragma once
#include "common.cuh"

using Barrier = unsigned long long;

#ifdef __CUDACC__

#define MDMF_ALIGNED_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

__device__ __forceinline__ unsigned shared_address(const void* place) {
    return unsigned(__cvta_generic_to_shared(place));
}

// A barrier whose phase ends when `count` arrivals and all announced bytes are there.
__device__ __forceinline__ void init_barrier(Barrier* barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Let the copy engine see barriers that were initialised. All threads have to meet afterwards.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrive, and announce bytes that copies will bring.
__device__ __forceinline__ void arrive_and_expect(Barrier* barrier, int bytes) {
    const unsigned place = shared_address(barrier);
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(place),
                 "r"(bytes)
                 : "memory");
}

// Wait for the end of the phase of this parity: 0 for a barrier's first phase, 1 for its second, 0 for its third.
__device__ __forceinline__ void wait(Barrier* barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Copy from global to shared memory, both 16-byte aligned, a multiple of 16 bytes. The barrier counts the bytes.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// Change the registers of each thread of this warpgroup, for all that follows.
template <int REGISTERS> __device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ void meet_warp() { __syncwarp(); }
__device__ __forceinline__ bool any_lane(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// The first lane's value, which the compiler then knows to be the same in all lanes.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Where a product finds points in shared memory: rows of 128 bytes, one for each point, whose 16-byte words are
// swizzled by the point modulo 8. `points` is a multiple of 1024 bytes. Adding 1 moves it by 16 bytes. This is the lower
// half of a descriptor, the same in all lanes: the compiler then keeps it where products read it.
__device__ __forceinline__ unsigned describe(const void* points) {
    return unsigned(uniform(int((shared_address(points) & 0x3ffff) >> 4 | 1u << 16)));
}
// The upper half: a swizzle of 128 bytes, groups of eight rows 1024 bytes apart.
#define MDMF_DESCRIPTOR "0x40000040"

// Bracket products: begin before the first, end after the last. They run until they are waited for.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#if defined(MDMF_BF16)
#define MDMF_WGMMA_TYPES ".f32.bf16.bf16 "
#else
#define MDMF_WGMMA_TYPES ".f32.f16.f16 "
#endif
#define MDMF_F4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MDMF_F16(c, i) MDMF_F4(c, i), MDMF_F4(c, i + 4), MDMF_F4(c, i + 8), MDMF_F4(c, i + 12)
#define MDMF_F32(c) MDMF_F16(c, 0), MDMF_F16(c, 16)
#define MDMF_F64(c) MDMF_F32(c), MDMF_F16(c, 32), MDMF_F16(c, 48)

// sums[row][point] (+)= a[row][k] . points[point][k] for 64 rows of the warpgroup, 16 k and 128 or 64 points. Without
// `add` the sums are set. Thread t holds rows t / 32 * 16 + t % 32 / 4 and 8 more, of both a and sums:
//   a[i]            k = t % 4 * 2, + 1 of row i % 2, and for i > 1 of k 8 higher
//   sums[4 j + i]   points 8 j + t % 4 * 2 + i % 2 of row i / 2
__device__ __forceinline__ void multiply(float (&sums)[64], const unsigned (&a)[4], unsigned points, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %69, 0;\nmov.b64 b, {%68, " MDMF_DESCRIPTOR "};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16" MDMF_WGMMA_TYPES
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
        "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,"
        "%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, b, p, 1, 1, 0;\n}"
        : MDMF_F64(sums)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(points), "r"(add));
}
__device__ __forceinline__ void multiply(float (&sums)[32], const unsigned (&a)[4], unsigned points, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %37, 0;\nmov.b64 b, {%36, " MDMF_DESCRIPTOR "};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16" MDMF_WGMMA_TYPES
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
        "%30,%31}, {%32,%33,%34,%35}, b, p, 1, 1, 0;\n}"
        : MDMF_F32(sums)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(points), "r"(add));
}

// Wait until at most LEFT of the latest brackets are still running. Only `settle` makes their sums readable.
template <int LEFT> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Keep the compiler from reading these sums before this point.
__device__ __forceinline__ void settle(float (&sums)[64]) { asm volatile("" : MDMF_F64(sums)::"memory"); }
__device__ __forceinline__ void settle(float (&sums)[32]) { asm volatile("" : MDMF_F32(sums)::"memory"); }

#endif
