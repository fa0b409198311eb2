// Warp-wide operations of the host build: shuffles, and mma.sync with the fragment layout of the PTX ISA.
#pragma once

namespace host {

// Lane `lane` of a warp holds rows lane / 4 and lane / 4 + 8 of A and of the sums, and column lane / 4 of B.
// A register holds two k: (row, k) of A is in a[k / 8 * 2 + row / 8] of lane row % 8 * 4 + k % 8 / 2. B likewise.
struct Fragments {
    float a[2][4][2];
    float b[4][2][2];
};

#if defined(MDMF_FP16) || defined(MDMF_FP16X2) || defined(MDMF_BF16)
constexpr int DEPTH = 16;
#else
constexpr int DEPTH = 0;
#endif

// One of the two numbers in a register.
inline float half_number(unsigned two, int which) {
    const unsigned short bits = static_cast<unsigned short>(two >> 16 * which);
#if defined(MDMF_BF16)
    return __uint_as_float(unsigned(bits) << 16);
#else
    return half_value(bits);
#endif
}

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
    for (int which = 0; which < 2; ++which) {
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < 4; ++i) mine.a[m][i][which] = host::half_number(a[m][i], which);
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 2; ++i) mine.b[n][i][which] = host::half_number(b[n][i], which);
    }
    const host::Posts<host::Fragments> lanes = host::exchange(mine);
    const int lane = threadIdx.x % host::WARP;
    // The rows and columns of this lane's sums. Each is looked up once, not once for every sum.
    double rows[M][2][16], columns[N][2][16];
    for (int k = 0; k < host::DEPTH; ++k) {
        const host::Fragments& own = lanes[lane / 4 * 4 + k % 8 / 2];
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < 2; ++i) rows[m][i][k] = own.a[m][k / 8 * 2 + i][k % 2];
        for (int i = 0; i < 2; ++i) {
            const host::Fragments& other = lanes[(lane % 4 * 2 + i) * 4 + k % 8 / 2];
            for (int n = 0; n < N; ++n) columns[n][i][k] = other.b[n][k / 8][k % 2];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 4; ++i) {
                double sum = sums[m][n][i];
                for (int k = 0; k < host::DEPTH; ++k) sum += rows[m][i / 2][k] * columns[n][i % 2][k];
                sums[m][n][i] = host::towards_zero(sum);
            }
}
