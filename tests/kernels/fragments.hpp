// Warp-wide operations of the host build: shuffles, and mma.sync with the fragment layout of the PTX ISA.
#pragma once

namespace host {

// Lane `lane` of a warp holds rows lane / 4 and lane / 4 + 8 of A and of the sums, and column lane / 4 of B.
struct Fragments {
    unsigned a[2][4];
    unsigned b[4][2];
};
using Lanes = const Posts<Fragments>&;

#if defined(MDMF_FP16) || defined(MDMF_FP16X2) || defined(MDMF_BF16)
constexpr int DEPTH = 16;
inline float half_of(unsigned two, int which) {
    const unsigned short bits = static_cast<unsigned short>(two >> 16 * which);
#if defined(MDMF_BF16)
    return __uint_as_float(unsigned(bits) << 16);
#else
    return half_value(bits);
#endif
}
// A register holds two k: (row, k) of A is in a[k / 8 * 2 + row / 8] of lane row % 8 * 4 + k % 8 / 2. B likewise.
inline float element_a(Lanes lanes, int m, int row, int k) {
    return half_of(lanes[row % 8 * 4 + k % 8 / 2].a[m][k / 8 * 2 + row / 8], k % 2);
}
inline float element_b(Lanes lanes, int n, int k, int column) {
    return half_of(lanes[column * 4 + k % 8 / 2].b[n][k / 8], k % 2);
}
#else
constexpr int DEPTH = 0;
inline float element_a(Lanes, int, int, int) { return 0.0f; }
inline float element_b(Lanes, int, int, int) { return 0.0f; }
#endif

// Truncate as tensor cores do when they add: the nearest float32 that is no farther from 0.
inline float towards_zero(double value) {
    const float nearest = static_cast<float>(value);
    return std::abs(static_cast<double>(nearest)) > std::abs(value) ? std::nextafter(nearest, 0.0f) : nearest;
}

}  // namespace host

inline float shuffle_xor(float value, int lanes) { return host::exchange(value)[(threadIdx.x % host::WARP) ^ lanes]; }

// M x N products in one meeting of the warp, each summed in float64 and then truncated to float32.
template <int M, int N> void multiply(float (&sums)[M][N][4], const unsigned (&a)[M][4], const unsigned (&b)[N][2]) {
    static_assert(M <= 2 && N <= 4, "more than a post holds");
    host::Fragments mine{};
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const host::Posts<host::Fragments> lanes = host::exchange(mine);
    const int lane = threadIdx.x % host::WARP;
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 4; ++i) {
                double sum = sums[m][n][i];
                for (int k = 0; k < host::DEPTH; ++k) {
                    const double left = host::element_a(lanes, m, lane / 4 + i / 2 * 8, k);
                    sum += left * host::element_b(lanes, n, k, lane % 4 * 2 + i % 2);
                }
                sums[m][n][i] = host::towards_zero(sum);
            }
}
