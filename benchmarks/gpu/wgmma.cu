// A sketch of step 3 for Hopper (fp16, d = 128, sm_90a), to learn what rate it reaches. The package does not use it, and
// no GPU has run it yet.
//
//   partial[slice][row] = sum_{m in slice} weights[m] 2^(x[row].bank[m] - |x[row]|^2/2 - |bank[m]|^2/2)
//
// One producer thread copies a tile of 128 points with one bulk copy. The host lays the bank out as wgmma reads it: rows of
// 128 bytes, words swizzled by row % 8, one half of the columns after the other. CONSUMERS, two or three, is the number of
// warpgroups that hold 64 rows each in registers. The exponentials of one run beside the products of another.
// FOLDED: 2^-|bank|^2/2 is in the weights already, and 2^-|x|^2/2 is applied to a row's sum at the end. This saves the
// additions and the bound on the exponent.
// SPECIAL: how many of four exponentials the special-function unit computes. A polynomial computes the others.
#ifndef FOLDED
#define FOLDED 0
#endif
#ifndef SPECIAL
#define SPECIAL 3
#endif
typedef unsigned long long u64;
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
constexpr int D = 128, TILE = 128, STAGES = 4, ROWS = 64 * CONSUMERS, SLICE = 4;  // SLICE: tiles
constexpr int THREADS = 128 * (CONSUMERS + 1);
constexpr int POINT_BYTES = TILE * D * 2;

struct alignas(1024) Stage {
    unsigned char points[POINT_BYTES];
    float norms[TILE];
    float weights[TILE];
};
struct Shared {
    Stage stages[STAGES];
    u64 full[STAGES], empty[STAGES];
};

__device__ __forceinline__ unsigned address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
// Trap instead of waiting for ever if this sketch has a mistake.
__device__ __forceinline__ void wait(u64* bar, int parity) {
    unsigned done = 0;
    for (int tries = 0; !done; ++tries) {
        asm volatile("{\n.reg .pred P;\nmbarrier.try_wait.parity.shared::cta.b64 P, [%1], %2;\nselp.b32 %0, 1, 0, P;\n}"
                     : "=r"(done)
                     : "r"(address(bar)), "r"(parity)
                     : "memory");
        if (tries == 1 << 20) asm volatile("trap;");
    }
}
__device__ __forceinline__ void arrive(u64* bar) {
    asm volatile("{\n.reg .b64 t;\nmbarrier.arrive.shared::cta.b64 t, [%0];\n}" ::"r"(address(bar)) : "memory");
}
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, u64* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(to)), "l"(from),
                 "r"(bytes), "r"(address(bar))
                 : "memory");
}

__device__ __forceinline__ float special(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}
__device__ __forceinline__ float polynomial(float x) {
    const float bounded = fmaxf(x, -127.0f), shifted = bounded + 12582912.0f, f = bounded - (shifted - 12582912.0f);
    float p = 9.58285294e-3f;
    p = fmaf(p, f, 5.59064262e-2f);
    p = fmaf(p, f, 2.40240991e-1f);
    p = fmaf(p, f, 6.93124175e-1f);
    p = fmaf(p, f, 1.0f);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

#define F4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define F16(c, i) F4(c, i), F4(c, i + 4), F4(c, i + 8), F4(c, i + 12)
__device__ __forceinline__ void product(float (&c)[64], const unsigned (&a)[4], u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
        " {%64,%65,%66,%67}, %68, p, 1, 1, 0;\n}"
        : F16(c, 0), F16(c, 16), F16(c, 32), F16(c, 48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_products(float (&c)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned %64;" : F16(c, 0), F16(c, 16), F16(c, 32), F16(c, 48) : "n"(LEFT) : "memory");
}

__device__ __forceinline__ void start_tile(float (&c)[64], const unsigned (&x)[8][4], const Stage& stage, const float (&own)[2]) {
#if !FOLDED
    const int quarter = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const float2 norm = *reinterpret_cast<const float2*>(stage.norms + 8 * j + 2 * quarter);
#pragma unroll
        for (int i = 0; i < 4; ++i) c[4 * j + i] = -own[i / 2] - (i % 2 == 0 ? norm.x : norm.y);
    }
#endif
    // 128-byte swizzle. Groups of eight rows are 1024 bytes apart.
    const u64 base = u64(1) << 62 | u64(64) << 32 | u64(1) << 16 | ((address(stage.points) & 0x3ffff) >> 4);
    begin_products();
#pragma unroll
    for (int k = 0; k < 8; ++k) product(c, x[k], base + (k / 4) * (POINT_BYTES / 2 >> 4) + (k % 4) * 2, FOLDED ? k > 0 : 1);
    end_products();
}

__device__ __forceinline__ void add_tile(float (&sums)[2], const float (&c)[64], const Stage& stage) {
    const int quarter = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const float2 weight = *reinterpret_cast<const float2*>(stage.weights + 8 * j + 2 * quarter);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float e = FOLDED ? c[4 * j + i] : fminf(c[4 * j + i], 0.0f);
            const bool by_polynomial = SPECIAL == 3 ? j % 2 == 1 && i % 2 == 1 : SPECIAL == 2 ? i % 2 == 1 : false;
            sums[i / 2] = fmaf(i % 2 == 0 ? weight.x : weight.y, by_polynomial ? polynomial(e) : special(e), sums[i / 2]);
        }
    }
}

// A unit is one slice of one row block. A block takes consecutive units, as many as the other blocks or one fewer.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wg_cross(const unsigned short* x, const float* x_norms, const unsigned char* tiles, const float* norms, const float* weights, int rows,
             int slices, float* partial) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int group = threadIdx.x / 128;
    const int blocks = (rows + ROWS - 1) / ROWS, units = blocks * slices;
    const int first = int((long long)units * blockIdx.x / gridDim.x), last = int((long long)units * (blockIdx.x + 1) / gridDim.x);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&shared.full[s])));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&shared.empty[s])), "n"(CONSUMERS));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (group == CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 128 * CONSUMERS) {
            int n = 0;
            for (int unit = first; unit < last; ++unit)
                for (int t = 0; t < SLICE; ++t, ++n) {
                    const int s = n % STAGES, tile = unit % slices * SLICE + t;
                    if (n >= STAGES) wait(&shared.empty[s], (n / STAGES - 1) & 1);
                    asm volatile("{\n.reg .b64 t;\nmbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1;\n}" ::"r"(address(&shared.full[s])),
                                 "r"(POINT_BYTES + 8 * TILE)
                                 : "memory");
                    copy_bulk(shared.stages[s].points, tiles + size_t(tile) * POINT_BYTES, POINT_BYTES, &shared.full[s]);
                    copy_bulk(shared.stages[s].norms, norms + tile * TILE, 4 * TILE, &shared.full[s]);
                    copy_bulk(shared.stages[s].weights, weights + tile * TILE, 4 * TILE, &shared.full[s]);
                }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMERS == 2 ? 232 : 152));
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, quarter = lane % 4;
        int n = 0;
        for (int unit = first; unit < last;) {
            const int block = unit / slices, stop = min(last, (block + 1) * slices), count = (stop - unit) * SLICE;
            const int row = block * ROWS + group * 64 + warp * 16 + lane / 4;
            unsigned own[8][4];
            float own_norms[2], sums[2] = {};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int here = min(row + 8 * i, rows - 1);
                own_norms[i] = x_norms[here];
                const unsigned* words = reinterpret_cast<const unsigned*>(x) + size_t(here) * (D / 2);
#pragma unroll
                for (int k = 0; k < 8; ++k) own[k][i] = words[8 * k + quarter], own[k][2 + i] = words[8 * k + 4 + quarter];
            }
            float c[64];
            for (int t = 0; t < count; ++t, ++n) {
                const Stage& stage = shared.stages[n % STAGES];
                wait(&shared.full[n % STAGES], n / STAGES & 1);
                start_tile(c, own, stage, own_norms);
                wait_products<0>(c);
                add_tile(sums, c, stage);
                asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
                if (threadIdx.x % 128 == 0) arrive(&shared.empty[n % STAGES]);
                if (t % SLICE == SLICE - 1) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float sum = sums[i];
                        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                        if (FOLDED) sum *= special(-own_norms[i]);
                        if (quarter == 0 && row + 8 * i < rows) partial[size_t((unit + t / SLICE) % slices) * rows + row + 8 * i] = sum;
                        sums[i] = 0.0f;
                    }
                }
            }
            unit = stop;
        }
    }
}
