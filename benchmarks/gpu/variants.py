"""Steps 3 and 4 with one thing changed, to learn what each costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """Edits of 3_tensor.cu as (old, new), and the launch where it differs from the project's own.

    rows: rows of a block, as a share of the project's own.
    """

    edits: Edits = ()
    tile: int = 32
    rows: float = 1.0
    threads: int = 256
    stages: int = 3


ONLY_FIRST_PRODUCT = (
    "        multiply_half<0>(products, rest, own[step], points);\n"
    "        multiply_half<1>(products, rest, own[step], points);\n",
    "        if (step == 0) {\n"
    "            multiply_half<0>(products, rest, own[step], points);\n"
    "        } else {\n"
    "            for (int n = 0; n < N; ++n)\n"
    '                asm volatile("" ::"r"(points[n].x), "r"(points[n].y), "r"(points[n].z), "r"(points[n].w));\n'
    "        }\n",
)
EXPONENTIAL = (
    "                const float kernel = polynomial ? exp2_polynomial<DEGREE>(exponent) : exp2_special(exponent);\n"
)
POLYNOMIAL = "                const bool polynomial = n % 2 == 1 && i % 2 == 1;\n"
BOUND = "                exponent = fminf(exponent, 0.0f);\n"
NORMS = "                products[m][n][i] = SPLIT ? 0.0f : -norms[m][i / 2] - (i % 2 == 0 ? norm.x : norm.y);\n"
RESIDENT = "constexpr int RESIDENT = SPLIT || WIDTH > 128 ? 1 : 2;"

AS_IT_IS = "as it is"
# Variants without exponentials, without norms or with one product of eight give wrong sums. Only their time counts.
VARIANTS: dict[str, Variant] = {
    AS_IT_IS: Variant(),
    "every exponential on the special-function unit": Variant(
        ((POLYNOMIAL, "                const bool polynomial = false;\n"),)
    ),
    "half of them by polynomial": Variant(
        ((POLYNOMIAL, "                const bool polynomial = i % 2 == 1;\n"),),
    ),
    "no exponentials": Variant(
        ((EXPONENTIAL, "                const float kernel = exponent;\n"), (POLYNOMIAL, "")),
    ),
    "one product of eight, all loads": Variant((ONLY_FIRST_PRODUCT,)),
    "norms and bound left out of the loop": Variant(
        ((NORMS, "                products[m][n][i] = 0.0f;\n"), (BOUND, "")),
    ),
    "four stages": Variant((("constexpr int STAGES = 3;", "constexpr int STAGES = 4;"),), stages=4),
    "tiles of 64 points": Variant((("constexpr int TILE = 32;", "constexpr int TILE = 64;"),), tile=64),
    "four warps a block, four blocks": Variant(
        (
            ("constexpr int WARPS = 8;", "constexpr int WARPS = 4;"),
            (RESIDENT, RESIDENT.replace("? 1 : 2", "? 2 : 4")),
        ),
        rows=0.5,
        threads=128,
    ),
    "32 points at a time": Variant((("constexpr int N = 2; ", "constexpr int N = 4; "),)),
}


@dataclass(frozen=True, slots=True)
class HopperVariant:
    """Step 4 with other constants (MDMF_... in 4_wgmma.cu), edits, or slices. None for the project's own.

    consumers: warpgroups that compute. sets: times 64 rows that each of them holds.
    chunk: tiles between two waits for all products.
    apart: whether exponentials are computed in one go before their weighted sums.
    stages: of the ring. Needed where rows lie in shared memory.
    """

    consumers: int = 2
    sets: int | None = None
    polynomials: int | None = None
    chunk: int | None = None
    apart: bool = False
    shared_rows: bool = False
    stages: int | None = None
    slices: int | None = None
    edits: Edits = ()
    widths: tuple[int, ...] = (64, 128, 256)

    @property
    def options(self) -> tuple[str, ...]:
        names = {
            "CONSUMERS": self.consumers,
            "SETS": self.sets,
            "POLYNOMIALS": self.polynomials,
            "CHUNK": self.chunk,
            "APART": int(self.apart),
            "SHARED_ROWS": int(self.shared_rows),
            "STAGES": self.stages,
        }
        return tuple(f"-DMDMF_{name}={value}" for name, value in names.items() if value is not None)


NO_EXPONENTIALS = (
    "            products.main[4 * j + i] = by_polynomial(j, i % 2) ? exp2_polynomial<DEGREE>(x) : exp2_special(x);\n",
    "            products.main[4 * j + i] = x;\n",
)
ONE_PRODUCT = (
    "    for (int step = 0; step < STEPS; ++step) {\n        unsigned a[4];",
    "    for (int step = 0; step < 1; ++step) {\n        unsigned a[4];",
)
IN_SHARED_MEMORY = HopperVariant(4, 1, shared_rows=True, stages=4, widths=(128,))
FOUR = HopperVariant(4, 1, widths=(64,))
THREE = HopperVariant(3, 1, slices=256)
HOPPER_VARIANTS: dict[str, HopperVariant] = {
    AS_IT_IS: HopperVariant(),
    "256 slices": HopperVariant(slices=256),
    "exponentials apart from their sums": HopperVariant(apart=True),
    "the same, 4 tiles between waits": HopperVariant(apart=True, chunk=4),
    "1 of eight exponentials by polynomial": HopperVariant(polynomials=1),
    "no exponentials": HopperVariant(edits=(NO_EXPONENTIALS,)),
    "one product of each tile": HopperVariant(edits=(ONE_PRODUCT,)),
    "3 warpgroups of 64 rows": HopperVariant(3, 1),
    "3 warpgroups of 64 rows, 256 slices": THREE,
    "the same, 1 of eight exponentials by polynomial": replace(THREE, polynomials=1),
    "4 warpgroups of 64 rows": IN_SHARED_MEMORY,
    "4 warpgroups of 64 rows, 256 slices": replace(IN_SHARED_MEMORY, slices=256),
    "the same, 1 of eight exponentials by polynomial, 4 warpgroups": replace(IN_SHARED_MEMORY, slices=256, polynomials=1),
    "4 warpgroups, no polynomial": replace(FOUR, polynomials=0),
    "4 warpgroups, no polynomial, 256 slices": replace(FOUR, slices=256, polynomials=0),
    "4 warpgroups, 1 of eight by polynomial": replace(FOUR, polynomials=1),
    "4 warpgroups, 1 of eight by polynomial, 256 slices": replace(FOUR, slices=256, polynomials=1),
    "4 warpgroups, 2 of eight by polynomial": replace(FOUR, polynomials=2),
    "4 warpgroups, 3 of eight by polynomial": replace(FOUR, polynomials=3),
}
