// Step 4: the cross term with Hopper's products of a whole warpgroup (sm_90a).
//
//   partial[s][row] = sum_{m in slice s} weights[m] 2^(x[row].bank[m] - |x[row]|^2/2 - |bank[m]|^2/2)
//
// The host folds 2^-min(|bank[m]|^2/2, NEAR) into weights[m], and `rest[m]` is what is left of |bank[m]|^2/2. A sum is
// multiplied by 2^(-|x|^2/2) at its end. So a row with a half norm up to NEAR, and a tile of such points, need no
// addition and no bound: their exponents are below 2 NEAR. Other rows and tiles subtract before they exponentiate.
//
// One thread copies tiles of TILE points into a ring of STAGES, with one bulk copy for each array. Each of CONSUMERS
// warpgroups keeps 64 rows in registers, multiplies them with a tile, and exponentiates while the others multiply. Four
// of them hide each other's latencies best. So many leave 112 registers to a thread: at a width of 128, enough for the
// rows and tiles of 64 points. The work is units: a slice for one block of rows each.
//
// The host lays a tile out as the products read it (kernels.py, `lay_out`). Any column may be any k, as long as both
// sides agree: 16 consecutive bytes of a row are what one thread needs for two products.
// fp16x2: a value is two fp16 numbers, X + x'. X.R is summed apart from X.r' + x'.R.
// Reference: 1_plain.cu on the device, mdmf_deploy.mmd.reference.ReferenceReduction (float64) elsewhere.
#include "hopper.cuh"

constexpr int GROUP = 128;  // threads of a warpgroup
#ifndef MDMF_TILE
#define MDMF_TILE ((PARTS == 1 && WIDTH == 128) || (PARTS == 2 && WIDTH == 256) ? 64 : 128)
#endif
constexpr int TILE = MDMF_TILE;
#ifndef MDMF_CONSUMERS
#define MDMF_CONSUMERS (PARTS == 2 ? 2 : WIDTH == 256 ? 3 : 4)
#endif
constexpr int CONSUMERS = MDMF_CONSUMERS;
constexpr int GROUP_ROWS = 64;
constexpr int ROWS = GROUP_ROWS * CONSUMERS;
constexpr int THREADS = GROUP * (CONSUMERS + 1);
constexpr int WARPS = CONSUMERS * GROUP / LANES;  // that consume
// Launched with 65536 registers for all threads, rounded down. The producer gives most of its own back.
constexpr int PRODUCER_REGISTERS = 24;
constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 240 : CONSUMERS == 3 ? 160 : 112;
constexpr bool SPLIT = PARTS == 2;

constexpr int STEPS = WIDTH / 16;  // products of one part
constexpr int PLANE = TILE * 128;  // bytes: 64 columns of a tile
constexpr int POINT_BYTES = TILE * ROW_BYTES;
constexpr int STAGE_BYTES = POINT_BYTES + 8 * TILE;
constexpr int STAGES = STAGE_BYTES > 50000 ? 3 : STAGE_BYTES > 30000 ? 4 : 8;
// Eighths of the exponentials that a polynomial computes: at a width of 64 the special-function unit is the limit.
#ifndef MDMF_POLYNOMIALS
#define MDMF_POLYNOMIALS (WIDTH == 64 && PARTS == 1 ? 2 : 0)
#endif
constexpr int POLYNOMIALS = MDMF_POLYNOMIALS;
constexpr float NEAR = 60.0f;

struct alignas(1024) Stage {
    unsigned char points[POINT_BYTES];
    float rest[TILE];
    float weights[TILE];
};

struct Shared {
    Stage stages[STAGES];
    Barrier full[STAGES];
    Barrier empty[STAGES];
};

// A row's words: [word][which of the thread's two rows]. A word is the fragments of two products.
using Row = uint4[STEPS * PARTS / 2][2];

// The fragments of a thread's rows for one step.
__device__ __forceinline__ void fragments(unsigned (&a)[4], const Row& own, int step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint4& words = own[step / 2][i];
        a[i] = step % 2 == 0 ? words.x : words.z;
        a[2 + i] = step % 2 == 0 ? words.y : words.w;
    }
}

// Where the points' part of a step lies in a tile.
__device__ __forceinline__ unsigned place_of_step(unsigned tile, int step) {
    return tile + step / 4 * (PLANE / 16) + step % 4 * 2;
}

// The exponents of a warpgroup's rows and one tile, without the norms.
template <bool SPLIT> struct Products {
    float main[TILE / 2];
};
template <> struct Products<true> {
    float main[TILE / 2];
    float rest[TILE / 2];
};

// Start the products of a warpgroup's rows and one tile.
template <bool SPLIT>
__device__ __forceinline__ void start(Products<SPLIT>& products, const Row& own, const Stage& stage) {
    const unsigned tile = describe(stage.points);
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        unsigned a[4];
        fragments(a, own, step);
        multiply(products.main, a, place_of_step(tile, step), step > 0);
        if constexpr (SPLIT) {
            multiply(products.rest, a, place_of_step(tile, STEPS + step), step > 0);
            fragments(a, own, STEPS + step);
            multiply(products.rest, a, place_of_step(tile, step), 1);
        }
    }
    end_products();
}

// Wait for all products.
template <bool SPLIT> __device__ __forceinline__ void finish(Products<SPLIT>& products) {
    wait_products<0>();
    settle(products.main);
    if constexpr (SPLIT) settle(products.rest);
}

template <bool SPLIT> __device__ __forceinline__ float exponent(const Products<SPLIT>& products, int i) {
    if constexpr (SPLIT) return products.main[i] + products.rest[i];
    return products.main[i];
}

// Chosen by the point alone, so that a row has the same bits wherever it lies.
__device__ __forceinline__ constexpr bool by_polynomial(int points, int column) {
    const int place = points % 4 * 2 + column;
    if (POLYNOMIALS == 1) return place == 7;
    if (POLYNOMIALS == 2) return place % 4 == 3;
    return POLYNOMIALS == 3 && place % 2 == 1 && place != 1;
}

// Add the terms of one tile to the sums of two rows: sums[2 row + column parity]. norms: the rows' half norms.
// ALL_NEAR: nothing has to be subtracted.
template <bool ALL_NEAR>
__device__ __forceinline__ void add_terms(float (&sums)[4], const Products<SPLIT>& products, const Stage& stage,
                                          const float (&norms)[2]) {
    float far[2], most[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        far[i] = norms[i] <= NEAR ? 0.0f : norms[i];
        most[i] = norms[i] <= NEAR ? 3e38f : NEAR;
    }
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
        const int point = 8 * j + 2 * (threadIdx.x % 4);
        const float2 weight = *reinterpret_cast<const float2*>(stage.weights + point);
        float2 rest = {0.0f, 0.0f};
        if constexpr (!ALL_NEAR) rest = *reinterpret_cast<const float2*>(stage.rest + point);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = exponent(products, 4 * j + i);
            // A near row on a near tile gets the same bits whether other rows are near or not.
            if constexpr (!ALL_NEAR) x = fminf(x - far[i / 2] - (i % 2 == 0 ? rest.x : rest.y), most[i / 2]);
            const float kernel = by_polynomial(j, i % 2) ? exp2_polynomial<DEGREE>(x) : exp2_special(x);
            sums[i] = fmaf(i % 2 == 0 ? weight.x : weight.y, kernel, sums[i]);
        }
    }
}

// The units of this block, in two contiguous shares: of all slices of all whole blocks of rows, one block after the
// other, and of the slices of a last block that is not whole. Those take less time. So they come last, and the thread
// blocks that got fewer of the others get more of them.
struct Work {
    int rows, slices;
    Range whole, last;
    int each, longer;  // tiles in a slice, and the number of slices with one more

    __device__ __forceinline__ Range share(int part) const {
        return {part == 0 ? whole.first : last.first, part == 0 ? whole.last : last.last};
    }

    __device__ __forceinline__ int first_tile(int slice) const { return slice * each + min(slice, longer); }
    __device__ __forceinline__ int count_tiles(int slice) const { return each + (slice < longer ? 1 : 0); }
};

// A place in the ring of stages, and the parity of its phase.
struct Ring {
    int at = 0, parity = 0;

    __device__ __forceinline__ void step() {
        if (++at < STAGES) return;
        at = 0;
        parity ^= 1;
    }
};

// Copy all tiles of the units, in order, as soon as a stage is free.
__device__ __forceinline__ void produce(Shared& shared, const Work& work, const unsigned char* bank, const float* rest,
                                        const float* weights) {
    Ring ring;
    // Nobody has to free a stage before its first use.
    bool used = false;
    for (int part = 0; part < 2; ++part) {
        const Range share = work.share(part);
        int slice = share.first % work.slices, tile = work.first_tile(slice);
        for (int unit = share.first; unit < share.last; ++unit) {
            for (int left = work.count_tiles(slice); left > 0; --left, ++tile) {
                Stage& stage = shared.stages[ring.at];
                Barrier* full = &shared.full[ring.at];
                if (used) wait(&shared.empty[ring.at], ring.parity ^ 1);
                arrive_and_expect(full, STAGE_BYTES);
                copy_bulk(stage.points, bank + static_cast<size_t>(tile) * POINT_BYTES, POINT_BYTES, full);
                copy_bulk(stage.rest, rest + tile * TILE, 4 * TILE, full);
                copy_bulk(stage.weights, weights + tile * TILE, 4 * TILE, full);
                ring.step();
                used |= ring.at == 0;
            }
            if (++slice == work.slices) slice = tile = 0;
        }
    }
}

// Wait for the tile at this place of the ring.
__device__ __forceinline__ const Stage& arrived(Shared& shared, const Ring& ring) {
    wait(&shared.full[ring.at], ring.parity);
    return shared.stages[ring.at];
}

// Tell the producer that this warp has read that tile.
__device__ __forceinline__ void release(Shared& shared, Ring& ring) {
    meet_warp();
    if (threadIdx.x % LANES == 0) arrive(&shared.empty[ring.at]);
    ring.step();
}

// Store the sums of a slice, and clear them. row: the thread's first.
__device__ __forceinline__ void store(float (&sums)[4], const float (&norms)[2], int row, int rows, float* partial) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float sum = sums[2 * i] + sums[2 * i + 1];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (norms[i] <= NEAR) sum *= exp2_polynomial<6>(-norms[i]);
        // Bounding the exponents loses a NaN. The norm brings it back.
        if (threadIdx.x % 4 == 0 && row + 8 * i < rows) partial[row + 8 * i] = sum + (norms[i] - norms[i]);
        sums[2 * i] = sums[2 * i + 1] = 0.0f;
    }
}

// One thread's part of a warpgroup's rows.
struct Rows {
    Row own;
    float norms[2];
};

// The first of this thread's two rows, within its warpgroup. The other comes 8 later.
__device__ __forceinline__ int own_row() { return threadIdx.x % GROUP / LANES * 16 + threadIdx.x % LANES / 4; }

// Load the rows from `first` on. Beyond the last row, repeat the last.
__device__ __forceinline__ void load(Rows& rows, const Operand* x, const float* half_norms, int first, int count) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = min(first + own_row() + 8 * i, count - 1);
        rows.norms[i] = half_norms[row];
        const uint4* words = reinterpret_cast<const uint4*>(x) + static_cast<size_t>(row) * (ROW_BYTES / 16);
#pragma unroll
        for (int word = 0; word < STEPS * PARTS / 2; ++word) rows.own[word][i] = words[4 * word + threadIdx.x % 4];
    }
}

// Whether all rows of a warpgroup are near. All its warps find the same.
__device__ __forceinline__ bool all_near(const float* half_norms, int first, int count) {
    bool near = true;
#pragma unroll
    for (int i = 0; i < GROUP_ROWS; i += LANES)
        near &= half_norms[min(first + i + int(threadIdx.x) % LANES, count - 1)] <= NEAR;
    return !any_lane(!near);
}

// Sum a share of units over the rows of one warpgroup.
__device__ __forceinline__ void consume(Shared& shared, Ring& ring, const Work& work, const Range& share, int group,
                                        const Operand* x, const float* half_norms, float* partial) {
    int block = share.first / work.slices, slice = share.first % work.slices;
    for (int unit = share.first; unit < share.last; ++block, slice = 0) {
        const int first = block * ROWS + group * GROUP_ROWS;
        const int last_slice = min(work.slices, slice + share.last - unit);
        unit += last_slice - slice;
        if (first >= work.rows) {
            for (int tiles = work.first_tile(last_slice) - work.first_tile(slice); tiles > 0; --tiles) {
                arrived(shared, ring);
                release(shared, ring);
            }
            continue;
        }
        Rows rows;
        load(rows, x, half_norms, first, work.rows);
        float sums[4] = {};
        // The host makes the first rest of every tile nonzero if any of the bank's is.
        const bool near = all_near(half_norms, first, work.rows) && arrived(shared, ring).rest[0] == 0.0f;
        float* to = partial + static_cast<size_t>(slice) * work.rows;
        for (; slice < last_slice; ++slice, to += work.rows) {
            for (int tiles = work.count_tiles(slice); tiles > 0; --tiles) {
                const Stage& stage = arrived(shared, ring);
                Products<SPLIT> products;
                start(products, rows.own, stage);
                finish(products);
                if (near)
                    add_terms<true>(sums, products, stage, rows.norms);
                else
                    add_terms<false>(sums, products, stage, rows.norms);
                release(shared, ring);
            }
            store(sums, rows.norms, first + own_row(), work.rows, to);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mdmf_cross(const Operand* __restrict__ x, const float* __restrict__ x_half_norms, const Operand* __restrict__ bank,
               const float* __restrict__ rest, const float* __restrict__ weights, int rows, int bank_rows, int slices,
               float* __restrict__ partial) {
    MDMF_ALIGNED_SHARED(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int tiles = bank_rows / TILE, whole = rows / ROWS * slices;
    Range last = share_of(rows % ROWS == 0 ? 0 : slices, gridDim.x, gridDim.x - 1 - blockIdx.x);
    last = {whole + last.first, whole + last.last};
    const Work work = {rows, slices, share_of(whole, gridDim.x, blockIdx.x), last, tiles / slices, tiles % slices};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(&shared.full[stage], 1);
            init_barrier(&shared.empty[stage], WARPS);
        }
        publish_barriers();
    }
    __syncthreads();
    const int group = uniform(threadIdx.x / GROUP);
    if (group == CONSUMERS) {
        keep_registers<PRODUCER_REGISTERS>();
        const auto* tiles_of_bank = reinterpret_cast<const unsigned char*>(bank);
        if (threadIdx.x == CONSUMERS * GROUP) produce(shared, work, tiles_of_bank, rest, weights);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        Ring ring;
        for (int part = 0; part < 2; ++part)
            consume(shared, ring, work, work.share(part), group, x, x_half_norms, partial);
    }
}
