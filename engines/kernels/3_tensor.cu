// Step 3: the cross term on tensor cores.
//
//   partial[s][row] = sum_{m in slice s} weights[m] 2^(x[row].bank[m] - |x[row]|^2/2 - |bank[m]|^2/2)
//     x (rows, d), bank (bank_rows, d), half norms and weights as in step 1.  partial (slices, rows).
//   fp16, bf16   one product per pair, float32 sums; the norms are those of the rounded operands
//   fp16x2       x = X + x', r = R + r', two fp16 numbers each: X.R in one sum, X.r' + x'.R in another
//
// A warp keeps WARP_ROWS rows (packed, of any images) in registers while the bank passes through shared memory, TILE
// points at a time, copied asynchronously STAGES - 1 tiles ahead. Any column of d may be any k of a matrix product, as
// long as both sides agree. So 16 consecutive bytes of a thread are the fragments of two products, and ldmatrix is not
// needed. One kernel value of four comes from a polynomial, to relieve the special-function unit.
// Reference: 1_plain.cu on the device, mdmf_deploy.mmd.reference.ReferenceReduction (float64) elsewhere.
#include "common.cuh"

constexpr bool SPLIT = PARTS == 2;
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * LANES;
// 16 rows at a time, twice if the registers hold them.
constexpr int M = ROW_BYTES > 512 ? 1 : 2;
constexpr int WARP_ROWS = 16 * M;
constexpr int ROWS = WARPS * WARP_ROWS;
constexpr int TILE = 32;
constexpr int N = 2;                    // times 8 points at a time; more would take the registers of a second block
constexpr int GROUPS = TILE / (8 * N);
constexpr int STAGES = 3;
constexpr int STEPS = WIDTH / 32;       // four threads read 32 numbers of a row, 16 bytes each
constexpr int WORDS = ROW_BYTES / 16;
constexpr int RESIDENT = ROW_BYTES > 256 ? 1 : 2;

struct Stage {
    uint4 points[TILE * WORDS];
    float half_norms[TILE];
    float weights[TILE];
};

struct Shared {
    Stage stages[STAGES];
};

__device__ __forceinline__ void copy_tile(Stage& to, const Operand* bank, const float* half_norms, const float* weights,
                                          int tile) {
    const uint4* points = reinterpret_cast<const uint4*>(bank) + static_cast<size_t>(tile) * TILE * WORDS;
    // Unrolled, it keeps addresses from tile to tile, in registers that fp16x2 needs for its sums.
#pragma unroll(SPLIT ? 1 : 4)
    for (int i = threadIdx.x; i < TILE * WORDS; i += THREADS)
        copy_async(to.points + place_of<WORDS>(i / WORDS, i % WORDS), points + i);
    if (threadIdx.x < TILE / 4) {
        const int i = threadIdx.x * 4;
        copy_async(to.half_norms + i, half_norms + tile * TILE + i);
        copy_async(to.weights + i, weights + tile * TILE + i);
    }
}

// The operands of one of the two products that 16 bytes hold: the first 8 bytes or the last.
template <int HALF> __device__ __forceinline__ unsigned word_of(const uint4& words, int i) {
    return HALF == 0 ? (i == 0 ? words.x : words.y) : (i == 0 ? words.z : words.w);
}

// Add to sums one of the two products that 16 bytes of a thread hold.
template <int HALF>
__device__ __forceinline__ void multiply_half(float (&sums)[M][N][4], const uint4 (&x)[M][2], const uint4 (&points)[N]) {
    unsigned a[M][4], b[N][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = word_of<HALF>(x[m][i % 2], i / 2);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) b[n][i] = word_of<HALF>(points[n], i);
    multiply<M, N>(sums, a, b);
}

// Add X.R to sums, and X.r' + x'.R to rest, by turns: a product waits for the last one that added to the same sum.
__device__ __forceinline__ void multiply_step(float (&sums)[M][N][4], float (&rest)[M][N][4],
                                              const uint4 (&x)[PARTS][M][2], const uint4 (&points)[PARTS][N]) {
    multiply_half<0>(sums, x[0], points[0]);
    if constexpr (SPLIT) multiply_half<0>(rest, x[1], points[0]);
    multiply_half<1>(sums, x[0], points[0]);
    if constexpr (SPLIT) {
        multiply_half<1>(rest, x[1], points[0]);
        multiply_half<0>(rest, x[0], points[1]);
        multiply_half<1>(rest, x[0], points[1]);
    }
}

// Add to sums[m][half] this thread's terms of the N * 8 points from `first` on. own, norms: its 2 M rows.
__device__ __forceinline__ void add_points(float (&sums)[M][2], const Stage& stage, int first,
                                           const uint4 (&own)[STEPS][PARTS][M][2], const float (&norms)[M][2]) {
    const int lane = threadIdx.x % LANES, group = lane / 4, quarter = lane % 4;
    float products[M][N][4], rest[M][N][4];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float2 norm = *reinterpret_cast<const float2*>(stage.half_norms + first + 8 * n + 2 * quarter);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                products[m][n][i] = SPLIT ? 0.0f : -norms[m][i / 2] - (i % 2 == 0 ? norm.x : norm.y);
                rest[m][n][i] = 0.0f;
            }
    }
    // place_of for this thread's words, split so that constants fold at compile time: an address is one addition.
    const uint4* words[2] = {stage.points + place_of<WORDS>(first + group, quarter),
                             stage.points + place_of<WORDS>(first + group, 4 + quarter)};
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        uint4 points[PARTS][N];
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
#pragma unroll
            for (int n = 0; n < N; ++n)
                points[part][n] = words[step % 2][8 * n * WORDS + (part * STEPS + step) / 2 * 8];
        multiply_step(products, rest, own[step], points);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float2 norm = *reinterpret_cast<const float2*>(stage.half_norms + first + 8 * n + 2 * quarter);
        const float2 weight = *reinterpret_cast<const float2*>(stage.weights + first + 8 * n + 2 * quarter);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float exponent = products[m][n][i];
                // Tensor cores truncate sums instead of rounding them: in fp16x2 the norms are subtracted at the end.
                if constexpr (SPLIT) exponent += rest[m][n][i] - (norms[m][i / 2] + (i % 2 == 0 ? norm.x : norm.y));
                exponent = fminf(exponent, 0.0f);
                // Chosen by the point alone, so that a row has the same bits wherever it lies in a tile.
                const bool polynomial = n % 2 == 1 && i % 2 == 1;
                const float kernel = polynomial ? exp2_polynomial<DEGREE>(exponent) : exp2_special(exponent);
                sums[m][i / 2] = fmaf(i % 2 == 0 ? weight.x : weight.y, kernel, sums[m][i / 2]);
            }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    mdmf_cross(const Operand* __restrict__ x, const float* __restrict__ x_half_norms, const Operand* __restrict__ bank,
               const float* __restrict__ bank_half_norms, const float* __restrict__ weights, int rows, int bank_rows,
               int slices, float* __restrict__ partial) {
    MDMF_DYNAMIC_SHARED(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int lane = threadIdx.x % LANES, group = lane / 4, quarter = lane % 4;
    const int first_row = blockIdx.x * ROWS + threadIdx.x / LANES * WARP_ROWS;
    // A warp without rows still copies and joins the barriers.
    const bool busy = first_row < rows;
    const Range mine = share_of(slices, gridDim.y, blockIdx.y);
    const int tiles = bank_rows / TILE;
    const int begin = share_of(tiles, slices, mine.first).first;
    const int end = share_of(tiles, slices, mine.last - 1).last;

    auto copy = [&](int tile) {
        if (tile < end) copy_tile(shared.stages[(tile - begin) % STAGES], bank, bank_half_norms, weights, tile);
        commit_copies();
    };
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) copy(begin + ahead);

    // Rows `group` and `group + 8` of each 16. Beyond the last row, repeat the last.
    uint4 own[STEPS][PARTS][M][2];
    float norms[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = min(first_row + 16 * m + 8 * i + group, rows - 1);
            norms[m][i] = x_half_norms[row];
            const uint4* words = reinterpret_cast<const uint4*>(x) + static_cast<size_t>(row) * WORDS;
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
                    own[step][part][m][i] = words[4 * (part * STEPS + step) + quarter];
        }

    float sums[M][2] = {};
    int slice = mine.first;
    int slice_end = share_of(tiles, slices, slice).last;
    for (int tile = begin; tile < end; ++tile) {
        wait_copies<STAGES - 2>();
        // Now the tile has arrived and nobody reads the previous one, which the next copy overwrites.
        __syncthreads();
        copy(tile + STAGES - 1);
        if (!busy) continue;
        const Stage& stage = shared.stages[(tile - begin) % STAGES];
#pragma unroll 1
        for (int part = 0; part < GROUPS; ++part) add_points(sums, stage, part * N * 8, own, norms);
        if (tile + 1 != slice_end) continue;

#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float sum = sums[m][i];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                const int row = first_row + 16 * m + 8 * i + group;
                // Bounding the exponents loses a NaN. The norm brings it back.
                if (quarter == 0 && row < rows)
                    partial[static_cast<size_t>(slice) * rows + row] = sum + (norms[m][i] - norms[m][i]);
                sums[m][i] = 0.0f;
            }
        ++slice;
        slice_end = share_of(tiles, slices, slice).last;
    }
}
