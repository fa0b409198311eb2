"""Steps 3 and 4 with one thing changed, to learn what each costs."""

from __future__ import annotations

from dataclasses import dataclass

Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """Edits of 3_tensor.cu as (old, new), and the launch where it differs from the project's own.

    rows: rows of a block, as a share of the project's own.
    resident: blocks of a multiprocessor where the project has one, and where it has two.
    """

    edits: Edits = ()
    tile: int = 32
    rows: float = 1.0
    threads: int = 256
    stages: int = 3
    resident: tuple[int, int] = (1, 2)


ONLY_FIRST_PRODUCT = (
    "        multiply_step(products, rest, own[step], points);\n",
    "        if (step == 0) {\n"
    "            multiply_half<0>(products, own[step][0], points[0]);\n"
    "        } else {\n"
    "            for (int part = 0; part < PARTS; ++part)\n"
    "                for (int n = 0; n < N; ++n) {\n"
    "                    const uint4& word = points[part][n];\n"
    '                    asm volatile("" ::"r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w));\n'
    "                }\n"
    "        }\n",
)
EXPONENTIAL = (
    "                const float kernel = polynomial ? exp2_polynomial<DEGREE>(exponent) : exp2_special(exponent);\n"
)
POLYNOMIAL = "                const bool polynomial = n % 2 == 1 && i % 2 == 1;\n"
BOUND = "                exponent = fminf(exponent, 0.0f);\n"
NORMS = "                products[m][n][i] = SPLIT ? 0.0f : -norms[m][i / 2] - (i % 2 == 0 ? norm.x : norm.y);\n"
RESIDENT = "constexpr int RESIDENT = ROW_BYTES > 256 ? 1 : 2;"

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
    "one product of eight (fp16x2: of 24), all loads": Variant((ONLY_FIRST_PRODUCT,)),
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
        resident=(2, 4),
    ),
    "16 rows a warp, two blocks": Variant(
        (
            ("constexpr int M = ROW_BYTES > 512 ? 1 : 2;", "constexpr int M = 1;"),
            (RESIDENT, RESIDENT.replace("? 1 : 2", "? 2 : 2")),
        ),
        rows=0.5,
        resident=(2, 2),
    ),
    "32 points at a time": Variant((("constexpr int N = 2; ", "constexpr int N = 4; "),)),
}


@dataclass(frozen=True, slots=True)
class HopperVariant:
    """Step 4 with other constants (MDMF_... in 4_wgmma.cu), edits, or slices. None for the project's own.

    consumers: warpgroups that compute. tile: points.
    polynomials: eighths of the exponentials that a polynomial computes.
    """

    consumers: int | None = None
    tile: int | None = None
    polynomials: int | None = None
    slices: int | None = None
    edits: Edits = ()

    @property
    def options(self) -> tuple[str, ...]:
        names = {"CONSUMERS": self.consumers, "TILE": self.tile, "POLYNOMIALS": self.polynomials}
        return tuple(f"-DMDMF_{name}={value}" for name, value in names.items() if value is not None)


NO_EXPONENTIALS = (
    "            const float kernel = by_polynomial(j, i % 2) ? exp2_polynomial<DEGREE>(x) : exp2_special(x);\n",
    "            const float kernel = x;\n",
)
ONE_PRODUCT = (
    "    for (int step = 0; step < STEPS; ++step) {\n        unsigned a[4];",
    "    for (int step = 0; step < 1; ++step) {\n        unsigned a[4];",
)
HOPPER_VARIANTS: dict[str, HopperVariant] = {
    AS_IT_IS: HopperVariant(),
    **{f"tiles of {n} points": HopperVariant(tile=n) for n in (64, 128)},
    "2 warpgroups": HopperVariant(2),
    "3 warpgroups": HopperVariant(3),
    **{f"{n} of eight exponentials by polynomial": HopperVariant(polynomials=n) for n in (0, 1, 2, 3)},
    **{f"{n} slices": HopperVariant(slices=n) for n in (128, 256)},
    "no exponentials": HopperVariant(edits=(NO_EXPONENTIALS,)),
    "one product of each tile": HopperVariant(edits=(ONE_PRODUCT,)),
}
