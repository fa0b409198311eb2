// Step 4: the cross term with Hopper's products of a whole warpgroup (sm_90a).
//
//   partial[s][row] = sum_{m in slice s} weights[m] 2^(x[row].bank[m] - |x[row]|^2/2 - |bank[m]|^2/2)
//
// The host folds 2^-min(|bank[m]|^2/2, NEAR) into weights[m], and `rest[m]` is what is left of |bank[m]|^2/2. A sum is
// multiplied by 2^(-|x|^2/2) at its end. So a row with a half norm up to NEAR, and a tile of such points, need no addition
// and no bound: their exponents are below 2 NEAR. Other rows and tiles subtract before they exponentiate.
//
// One thread copies tiles of TILE points into a ring of STAGES, one bulk copy for each array. CONSUMERS warpgroups hold
// SETS times 64 rows each in registers. A warpgroup exponentiates the products of one set while those of its other set, or
// of the other warpgroup, are being computed. The work is one list of units, a slice of one block of rows each. A block
// takes a contiguous share of the list.
//
// The host lays a tile out as the products read it (kernels.py, `_hopper_tiles`). Any column may be any k, as long as both
// sides agree: 16 consecutive bytes of a row are what one thread needs for two products.
// fp16x2: a value is two fp16 numbers, X + x'. X.R is summed apart from X.r' + x'.R.
// Reference: 1_plain.cu on the device, mdmf_deploy.mmd.reference.ReferenceReduction (float64) elsewhere.
#include "hopper.cuh"

constexpr int GROUP = 128;      // threads of a warpgroup
constexpr int GROUP_ROWS = 64;  // rows of its products
#ifndef MDMF_CONSUMERS
#define MDMF_CONSUMERS 2
#endif
constexpr int CONSUMERS = MDMF_CONSUMERS;
// Two sets of rows if the registers hold them.
#ifndef MDMF_SETS
#define MDMF_SETS (PARTS == 1 && WIDTH <= 128 ? 2 : 1)
#endif
constexpr int SETS = MDMF_SETS;
constexpr int ROWS = GROUP_ROWS * SETS * CONSUMERS;
constexpr int TILE = PARTS == 2 && WIDTH == 256 ? 64 : 128;
constexpr int THREADS = GROUP * (CONSUMERS + 1);
constexpr int WARPS = CONSUMERS * GROUP / LANES;  // that consume
constexpr int STEPS = WIDTH / 16;                 // products of one part
constexpr int PLANE = TILE * 128;                 // bytes: 64 columns of a tile
constexpr int POINT_BYTES = TILE * ROW_BYTES;
constexpr int STAGE_BYTES = POINT_BYTES + 8 * TILE;
#ifndef MDMF_STAGES
#define MDMF_STAGES (STAGE_BYTES > 50000 ? 3 : STAGE_BYTES > 30000 ? 6 : 8)
#endif
constexpr int STAGES = MDMF_STAGES;
constexpr int PRODUCER_REGISTERS = 24;
constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 240 : CONSUMERS == 3 ? 160 : 112;
// Eighths of the exponentials that a polynomial computes. At a width of 64 the special-function unit is the limit.
#ifndef MDMF_POLYNOMIALS
#define MDMF_POLYNOMIALS (WIDTH == 64 ? 2 : 0)
#endif
constexpr int POLYNOMIALS = MDMF_POLYNOMIALS;
// Whether rows lie in shared memory instead of in registers.
#ifndef MDMF_SHARED_ROWS
#define MDMF_SHARED_ROWS 0
#endif
constexpr bool SHARED_ROWS = MDMF_SHARED_ROWS;
constexpr int GROUP_BYTES = GROUP_ROWS * ROW_BYTES;
// Tiles between two waits for all products.
#ifndef MDMF_CHUNK
#define MDMF_CHUNK 1
#endif
constexpr int CHUNK = MDMF_CHUNK;
// Whether exponentials are computed in one go before their weighted sums.
#ifndef MDMF_APART
#define MDMF_APART 0
#endif
constexpr bool APART = MDMF_APART;
constexpr float NEAR = 60.0f;

struct alignas(1024) Stage {
    unsigned char points[POINT_BYTES];
    float rest[TILE];
    float weights[TILE];
};

struct alignas(1024) SharedRows {
    unsigned char words[GROUP_BYTES];
};

struct Shared {
#if MDMF_SHARED_ROWS
    SharedRows rows[CONSUMERS * SETS];
#endif
    Stage stages[STAGES];
    Barrier full[STAGES];
    Barrier empty[STAGES];
};

// A row's words: [word][which of the thread's two rows]. A word is the fragments of two products.
using Row = uint4[STEPS * PARTS / 2][2];

// The fragments of step `step` of a set.
__device__ __forceinline__ void fragments(unsigned (&a)[4], const Row& own, int step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint4& words = own[step / 2][i];
        a[i] = step % 2 == 0 ? words.x : words.z;
        a[2 + i] = step % 2 == 0 ? words.y : words.w;
    }
}

// Where step `step` of a tile lies.
__device__ __forceinline__ unsigned place_of_step(unsigned tile, int step) {
    return tile + step / 4 * (PLANE / 16) + step % 4 * 2;
}

// The exponents of one set of rows and one tile, without the norms.
template <bool SPLIT> struct Products {
    float main[TILE / 2];
};
template <> struct Products<true> {
    float main[TILE / 2];
    float rest[TILE / 2];
};
constexpr bool SPLIT = PARTS == 2;
static_assert(!(SPLIT && SHARED_ROWS), "no such design");

// Start the products of one set and one tile. own: in registers, or `described` in shared memory.
template <bool SPLIT>
__device__ __forceinline__ void start(Products<SPLIT>& products, const Row& own, unsigned described,
                                      const Stage& stage) {
    const unsigned tile = describe(stage.points);
    if constexpr (SHARED_ROWS) {
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            multiply_shared(products.main, described + step / 4 * (GROUP_ROWS * 128 / 16) + step % 4 * 2,
                            place_of_step(tile, step), step > 0);
        end_products();
        return;
    }
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

// Wait for these products, of which at most LEFT brackets were started later.
template <int LEFT, bool SPLIT> __device__ __forceinline__ void finish(Products<SPLIT>& products) {
    wait_products<LEFT>();
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
    return POLYNOMIALS == 1 ? place == 7 : POLYNOMIALS == 2 ? place % 4 == 3 : POLYNOMIALS == 3 ? place % 2 == 1 && place != 1 : POLYNOMIALS == 4 && place % 2 == 1;
}

// Replace the exponents of one tile by kernel values. ALL_NEAR: nothing has to be subtracted.
template <bool ALL_NEAR>
__device__ __forceinline__ void exponentiate(Products<SPLIT>& products, const Stage& stage, const float (&norms)[2]) {
    float far[2], most[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        far[i] = norms[i] <= NEAR ? 0.0f : norms[i];
        most[i] = norms[i] <= NEAR ? 3e38f : NEAR;
    }
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
        float2 rest = {0.0f, 0.0f};
        if constexpr (!ALL_NEAR) rest = *reinterpret_cast<const float2*>(stage.rest + 8 * j + 2 * (threadIdx.x % 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x = exponent(products, 4 * j + i);
            // A near row on a near tile gets the same bits whether other rows are near or not.
            if constexpr (!ALL_NEAR)
                x = fminf(x - far[i / 2] - (i % 2 == 0 ? rest.x : rest.y), most[i / 2]);
            products.main[4 * j + i] = by_polynomial(j, i % 2) ? exp2_polynomial<DEGREE>(x) : exp2_special(x);
        }
    }
}

// Add the kernel values of one tile to the sums of two rows: sums[2 row + column parity].
__device__ __forceinline__ void add(float (&sums)[4], const Products<SPLIT>& products, const Stage& stage) {
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
        const float2 weight = *reinterpret_cast<const float2*>(stage.weights + 8 * j + 2 * (threadIdx.x % 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = fmaf(i % 2 == 0 ? weight.x : weight.y, products.main[4 * j + i], sums[i]);
    }
}

template <bool ALL_NEAR>
__device__ __forceinline__ void add_terms(float (&sums)[4], Products<SPLIT>& products, const Stage& stage,
                                          const float (&norms)[2], int opaque) {
    exponentiate<ALL_NEAR>(products, stage, norms);
    if constexpr (APART) divide_code(opaque);
    add(sums, products, stage);
}

// The units of this block: a contiguous share of a list, all slices of the first block of rows, then of the next.
struct Work {
    int rows, slices, first, last;
    int each, longer;  // tiles in a slice, and the number of slices with one more

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
    int slice = work.first % work.slices, tile = work.first_tile(slice);
    // Nobody has to free a stage before its first use.
    bool used = false;
    for (int unit = work.first; unit < work.last; ++unit) {
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

// Store the sums of one set and slice, and clear them.
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

// One warpgroup's rows of a block, and their sums over the slice that is being read.
struct Rows {
    Row own[SETS];
    unsigned described[SETS];  // if they lie in shared memory
    float norms[SETS][2];
    float sums[SETS][4];
};

// The first of this thread's rows in a set, within its warpgroup.
__device__ __forceinline__ int row_of(int set) {
    return GROUP_ROWS * set + threadIdx.x % GROUP / LANES * 16 + threadIdx.x % LANES / 4;
}

// Load the rows from `first` on. Beyond the last row, repeat the last.
__device__ __forceinline__ void load(Rows& rows, [[maybe_unused]] Shared& shared, [[maybe_unused]] int group, const Operand* x, const float* half_norms, int first,
                                     int count) {
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = min(first + row_of(set) + 8 * i, count - 1);
            rows.norms[set][i] = half_norms[row];
            rows.sums[set][2 * i] = rows.sums[set][2 * i + 1] = 0.0f;
            const uint4* words = reinterpret_cast<const uint4*>(x) + static_cast<size_t>(row) * (ROW_BYTES / 16);
#pragma unroll
            for (int word = 0; word < STEPS * PARTS / 2; ++word) rows.own[set][word][i] = words[4 * word + threadIdx.x % 4];
        }
#if MDMF_SHARED_ROWS
        unsigned char* place = shared.rows[group * SETS + set].words;
        rows.described[set] = describe(place);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            unsigned a[4];
            fragments(a, rows.own[set], step);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_of(0) + i % 2 * 8;
                const int at = step / 4 * GROUP_ROWS * 128 + row * 128 + step % 4 * 32 + i / 2 * 16 + threadIdx.x % 4 * 4;
                *reinterpret_cast<unsigned*>(place + (at ^ (at >> 3 & 0x70))) = a[i];
            }
        }
#endif
    }
#if MDMF_SHARED_ROWS
    publish_shared();
    meet_group();
#endif
}

// Whether all rows of a warpgroup are near. All its warps find the same.
__device__ __forceinline__ bool all_near(const float* half_norms, int first, int count) {
    bool near = true;
#pragma unroll
    for (int i = 0; i < GROUP_ROWS * SETS / LANES; ++i)
        near &= half_norms[min(first + i * LANES + int(threadIdx.x) % LANES, count - 1)] <= NEAR;
    return !any_lane(!near);
}

// Read COUNT tiles without norms to subtract. While one set is exponentiated, the products of the other are computed.
// All are finished at the end: if one ran across the end of a loop, the compiler would wait for each. done: is called
// after each tile.
template <int COUNT, typename Done>
__device__ __forceinline__ void add_near(Rows& rows, Shared& shared, Ring& ring, int opaque, const Done& done) {
    if constexpr (SETS == 1) {
#pragma unroll
        for (int t = 0; t < COUNT; ++t) {
            Products<SPLIT> products;
            const Stage& stage = arrived(shared, ring);
            start(products, rows.own[0], rows.described[0], stage);
            finish<0>(products);
            add_terms<true>(rows.sums[0], products, stage, rows.norms[0], opaque);
            done();
        }
    } else {
        Products<SPLIT> one, other;
        const Stage* stage = &arrived(shared, ring);
        start(one, rows.own[0], rows.described[0], *stage);
#pragma unroll
        for (int t = 0; t < COUNT; ++t) {
            start(other, rows.own[SETS - 1], rows.described[SETS - 1], *stage);
            finish<1>(one);
            add_terms<true>(rows.sums[0], one, *stage, rows.norms[0], opaque);
            const Stage* next = stage;
            if (t + 1 < COUNT) {
                Ring following = ring;
                following.step();
                next = &arrived(shared, following);
                start(one, rows.own[0], rows.described[0], *next);
                finish<1>(other);
            } else {
                // Otherwise the compiler would wait for all products before it is done with the first.
                divide_code(opaque);
                finish<0>(other);
            }
            add_terms<true>(rows.sums[SETS - 1], other, *stage, rows.norms[SETS - 1], opaque);
            stage = next;
            done();
        }
    }
}

// Read a tile and subtract what norms its points and rows have.
__device__ __forceinline__ void add_far(Rows& rows, const Stage& stage, int opaque) {
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
        Products<SPLIT> products;
        start(products, rows.own[set], rows.described[set], stage);
        finish<0>(products);
        add_terms<false>(rows.sums[set], products, stage, rows.norms[set], opaque);
    }
}

// Sum all units of this block over the rows of one warpgroup.
__device__ __forceinline__ void consume(Shared& shared, const Work& work, int group, const Operand* x,
                                        const float* half_norms, float* partial) {
    Ring ring;
    int block = work.first / work.slices, slice = work.first % work.slices;
    for (int unit = work.first; unit < work.last; ++block, slice = 0) {
        const int first = block * ROWS + group * GROUP_ROWS * SETS;
        const int last_slice = min(work.slices, slice + work.last - unit);
        int tiles = work.first_tile(last_slice) - work.first_tile(slice);
        unit += last_slice - slice;
        if (first >= work.rows) {
            for (; tiles > 0; --tiles) {
                arrived(shared, ring);
                release(shared, ring);
            }
            continue;
        }
        Rows rows;
        load(rows, shared, group, x, half_norms, first, work.rows);
        float* to = partial + static_cast<size_t>(slice) * work.rows;
        int left = work.count_tiles(slice);
        const auto done = [&] {
            release(shared, ring);
            --tiles;
            if (--left > 0) return;
#pragma unroll
            for (int set = 0; set < SETS; ++set)
                store(rows.sums[set], rows.norms[set], first + row_of(set), work.rows, to);
            to += work.rows;
            left = work.count_tiles(++slice);
        };
        // The host makes the first rest of every tile nonzero if any of the bank's is.
        if (all_near(half_norms, first, work.rows) && arrived(shared, ring).rest[0] == 0.0f) {
            while (tiles >= CHUNK) add_near<CHUNK>(rows, shared, ring, work.rows, done);
            while (tiles > 0) add_near<1>(rows, shared, ring, work.rows, done);
        } else {
            while (tiles > 0) {
                add_far(rows, arrived(shared, ring), work.rows);
                done();
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mdmf_cross(const Operand* __restrict__ x, const float* __restrict__ x_half_norms, const Operand* __restrict__ bank,
               const float* __restrict__ rest, const float* __restrict__ weights, int rows, int bank_rows, int slices,
               float* __restrict__ partial) {
    MDMF_ALIGNED_SHARED(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Range mine = share_of((rows + ROWS - 1) / ROWS * slices, gridDim.x, blockIdx.x);
    const int tiles = bank_rows / TILE;
    const Work work = {rows, slices, mine.first, mine.last, tiles / slices, tiles % slices};
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
        if (threadIdx.x == CONSUMERS * GROUP) produce(shared, work, reinterpret_cast<const unsigned char*>(bank), rest, weights);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(shared, work, group, x, x_half_norms, partial);
    }
}
