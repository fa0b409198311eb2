"""Steps 3 and 4 with one thing changed, to learn what each costs."""

from __future__ import annotations

from dataclasses import dataclass

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
    stages: of the ring. Needed where rows lie in shared memory.
    """

    consumers: int = 2
    sets: int | None = None
    chunk: int | None = None
    polynomials: int | None = None
    turns: bool = False
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
            "CHUNK": self.chunk,
            "POLYNOMIALS": self.polynomials,
            "TURNS": int(self.turns) or None,
            "SHARED_ROWS": int(self.shared_rows) or None,
            "STAGES": self.stages,
        }
        return tuple(f"-DMDMF_{name}={value}" for name, value in names.items() if value is not None)


HOPPER_EXPONENTIAL = (
    "            const float kernel = by_polynomial(j, i % 2) ? exp2_polynomial<DEGREE>(x) : exp2_special(x);\n",
    "            const float kernel = x;\n",
)
ONE_PRODUCT = (
    "        for (int step = 0; step < STEPS; ++step)\n            multiply_shared",
    "        for (int step = 0; step < 1; ++step)\n            multiply_shared",
)
SHARED = {"consumers": 4, "sets": 1, "shared_rows": True, "stages": 4, "widths": (128,)}
FOUR = {"consumers": 4, "sets": 1, "widths": (64,)}
HOPPER_VARIANTS: dict[str, HopperVariant] = {
    AS_IT_IS: HopperVariant(),
    "256 slices": HopperVariant(slices=256),
    "512 slices": HopperVariant(slices=512),
    "turns": HopperVariant(turns=True),
    "turns, 256 slices": HopperVariant(turns=True, slices=256),
    "turns, 256 slices, 1 of eight exponentials by polynomial": HopperVariant(turns=True, slices=256, polynomials=1),
    "2 warpgroups of 64 rows, turns, 256 slices": HopperVariant(sets=1, turns=True, slices=256),
    "3 warpgroups of 64 rows, 256 slices": HopperVariant(3, 1, slices=256),
    "3 warpgroups of 64 rows, turns, 256 slices": HopperVariant(3, 1, turns=True, slices=256),
    "4 warpgroups of 64 rows, in shared memory": HopperVariant(**SHARED),
    "the same, 256 slices": HopperVariant(**SHARED, slices=256),
    "the same, 512 slices": HopperVariant(**SHARED, slices=512),
    "the same, 256 slices, turns": HopperVariant(**SHARED, slices=256, turns=True),
    "the same, 256 slices, 1 of eight by polynomial": HopperVariant(**SHARED, slices=256, polynomials=1),
    "the same, 256 slices, 2 of eight by polynomial": HopperVariant(**SHARED, slices=256, polynomials=2),
    "the same, 256 slices, no exponentials": HopperVariant(**SHARED, slices=256, edits=(HOPPER_EXPONENTIAL,)),
    "the same, 256 slices, one product of each tile": HopperVariant(**SHARED, slices=256, edits=(ONE_PRODUCT,)),
    "2 warpgroups of 128 rows, in shared memory, 256 slices": HopperVariant(
        2, 2, shared_rows=True, stages=4, slices=256, widths=(128,)
    ),
    "4 warpgroups of 64 rows": HopperVariant(**FOUR, polynomials=0),
    **{
        f"4 warpgroups of 64 rows, 256 slices, {n} of eight by polynomial": HopperVariant(**FOUR, slices=256, polynomials=n)
        for n in (0, 1, 2, 3)
    },
    "4 warpgroups of 64 rows, 256 slices, turns, 1 of eight by polynomial": HopperVariant(
        **FOUR, slices=256, polynomials=1, turns=True
    ),
}
