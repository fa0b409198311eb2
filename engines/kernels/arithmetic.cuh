// What device and host share: which tiles belong to which slice and block, where a tile's words lie, and 2^x without
// the special-function unit.
//
//   2^x = 2^n (1 + f q(f)),   n = round(x),   f = x - n in [-1/2, 1/2]
//
// Pure functions: nothing here knows a thread.  The host build compiles this file as it stands.
// Reference: mdmf_deploy.mmd.reference (float64).
#pragma once

// A half-open range of tiles, slices or rows.
struct Range {
    int first;
    int last;
};

// The part of `count` things that goes to `part` of `parts`: contiguous, all of them, sizes that differ by one at most.
__device__ __forceinline__ Range share_of(int count, int parts, int part) {
    const int each = count / parts, longer = count % parts;
    const int first = part * each + min(part, longer);
    return {first, first + each + (part < longer ? 1 : 0)};
}

// Where 16-byte word `word` of a point lies in shared memory, in words; WORDS a point, a whole number of 128 bytes.
// Odd points swap halves of 128 bytes, so that eight threads that read at a time, four consecutive words of two
// consecutive points, find theirs in 32 different banks.
template <int WORDS> __device__ __forceinline__ int place_of(int point, int word) {
    static_assert(WORDS % 8 == 0, "odd points would not begin where even ones do");
    return point * WORDS + (word ^ (point % 2 * 4));
}

// Exponents go no lower: from here down 2^x is 0 in float32 without subnormal numbers.
constexpr float LOWEST = -127.0f;

// |error| / 2^x: 3e-6 with 4 coefficients, 2e-9 (below a float32's own rounding) with 6; least-squares fits, reweighted
// until the error's peaks were level.  The constant is exactly 1, so that 2^0 is.
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

// 2^x for x <= 0 on the FMA pipes alone.  Below -126 it is off by 2^-126 at most; at LOWEST and below it is 0.
template <int DEGREE> __device__ __forceinline__ float exp2_polynomial(float x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
    const float bounded = fmaxf(x, LOWEST);
    const float shifted = bounded + SHIFT;
    const float mantissa = exp2_fraction<DEGREE>(bounded - (shifted - SHIFT));
    // Adding n to the exponent's bits; at n = -127 they become those of 0.
    return __uint_as_float(__float_as_uint(mantissa) + (__float_as_uint(shifted) << 23));
}
