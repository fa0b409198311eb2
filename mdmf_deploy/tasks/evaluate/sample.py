"""Choose some images of a data set, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

from mdmf_deploy.tasks.evaluate.datasets import KnownImage


def sample(images: Sequence[KnownImage], number: int) -> list[KnownImage]:
    """Choose at most `number` images of every generator, and at most as many real ones for each generator.

    Real images weigh as much as generated ones, and an FPR needs many of them. The choice depends on hashes alone, so
    the same data set gives the same sample, and a larger one holds it. The order stays.
    """
    groups: dict[tuple[str | None, str | None], list[KnownImage]] = {}
    for image in images:
        groups.setdefault((image.generator, image.compared_with), []).append(image)
    generators = len({image.generator for image in images if image.generator is not None})
    chosen: set[int] = set()
    for (generator, compared_with), members in groups.items():
        most = number * generators if generator is None and compared_with is None else number
        chosen.update(id(image) for image in sorted(members, key=_place)[:most])
    return [image for image in images if id(image) in chosen]


def _place(image: KnownImage) -> tuple[bool, str]:
    # A split goes by the first digits, so only the last ones are evenly spread in each of its parts.
    return image.sha256 is None, (image.sha256 or "")[::-1]
