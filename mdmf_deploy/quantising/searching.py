"""Which layers of an int8 graph stay in fp32: as few as the gate asks for, the most sensitive first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# With more of its layers in fp32 than this an int8 graph is hardly faster than fp32, and still less exact.
WORTH = 0.5


def most_worth_keeping(layers: int) -> int:
    """How many of so many layers may stay in fp32 for an int8 graph to be worth having."""
    return int(WORTH * layers)


def rank(layers: Sequence[str], error: Callable[[str], float]) -> list[str]:
    """Layers by the error that quantising each of them alone causes, the worst first.

    error: called once a layer; what is not a number counts as the worst.
    """
    errors = {layer: error(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -errors[layer] if errors[layer] == errors[layer] else -float("inf"))


def fewest(order: Sequence[str], passes: Callable[[Sequence[str]], bool], most: int) -> Sequence[str] | None:
    """The shortest beginning of the order that passes, of at least 1 and at most `most` layers; None if none does.

    passes: tried at 1, 2, 4, ... layers and at most, then by bisection below the first that passes: about
    2 log2(most) calls.  Where a longer beginning fails again (one score beside the threshold), what is found passes,
    but a shorter one might have been overlooked.
    """
    failed, size = 0, 1
    while size <= most and not passes(order[:size]):
        failed, size = size, most if size < most < 2 * size else 2 * size
    if size > most:
        return None
    while size - failed > 1:
        middle = (failed + size) // 2
        if passes(order[:middle]):
            size = middle
        else:
            failed = middle
    return order[:size]
