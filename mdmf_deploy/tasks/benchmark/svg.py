"""Charts as inline SVG: a scale, a few shapes, and the two pictures a benchmark needs.

Shapes are elements, not text, so that any label gives well-formed XML. Colours are classes of the page's style sheet,
which knows light from dark: s0, s1, ... for series, "grid" and "axis" for lines, "dim" for text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from mdmf_deploy.tasks.benchmark.tables import number

SERIES = 6
_WIDTH = 760
_ROW, _GAP, _LINE, _LEFT, _RIGHT = 16, 12, 18, 110, 90
_MARKS = (50, 90, 95, 99)
_CHAR = 6.6  # width of a character of 11 px, generously


@dataclass(frozen=True, slots=True)
class Bar:
    """value: length.  low, high: the ends of its whisker."""

    value: float
    low: float
    high: float


def bars(labels: Sequence[str], series: Sequence[tuple[str, Sequence[Bar]]], unit: str) -> str:
    """Horizontal bars: a group for each label, in it a bar for each series (name, one Bar a label)."""
    root = _root(f"{unit} by stage")
    top = _legend(root, [name for name, _ in series]) + 8
    group = _ROW * len(series) + _GAP
    bottom = top + group * len(labels)
    ticks = nice_ticks(max(bar.high for _, row in series for bar in row))
    scale = (_WIDTH - _LEFT - _RIGHT) / ticks[-1]
    for tick in ticks:
        x = _LEFT + tick * scale
        _line(root, "grid", x, top, x, bottom)
        _text(root, x, bottom + 16, _tick(tick), anchor="middle", style="dim")
    _text(root, (_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, unit, anchor="middle", style="dim")
    for n, label in enumerate(labels):
        first = top + n * group + _GAP / 2
        _text(root, _LEFT - 8, first + _ROW * len(series) / 2 + 4, label, anchor="end")
        for k, (_, row) in enumerate(series):
            bar, y = row[n], first + k * _ROW
            length = max(1.0, bar.value * scale)
            size = {"x": _LEFT, "y": y + 1, "width": length, "height": _ROW - 3}
            SubElement(root, "rect", {"class": f"s{k % SERIES}"} | {name: _px(value) for name, value in size.items()})
            _line(root, "axis", _LEFT + bar.low * scale, y + _ROW / 2, _LEFT + bar.high * scale, y + _ROW / 2)
            _text(root, _LEFT + max(length, bar.high * scale) + 6, y + _ROW - 4, number(bar.value))
    _line(root, "axis", _LEFT, top, _LEFT, bottom)
    return _finished(root, bottom + 44)


def percentiles(series: Sequence[tuple[str, Sequence[float] | None]], unit: str) -> str:
    """Values over their percentiles 0 to 100, a curve for each series (name, 101 values, None for no curve).

    The horizontal axis is -log10 of the share above, so that 90 and 99 lie as far apart as 0 and 90; it ends at 99.
    """
    curves = {k: curve for k, (_, curve) in enumerate(series) if curve is not None}
    root = _root(f"{unit} by percentile")
    top = _legend(root, [name for name, _ in series]) + 26
    bottom, left, right = top + 230, 64, _WIDTH - 40
    ticks = nice_ticks(max(curve[99] for curve in curves.values()))
    scale = (bottom - top) / ticks[-1]
    for tick in ticks:
        y = bottom - tick * scale
        _line(root, "grid", left, y, right, y)
        _text(root, left - 8, y + 4, _tick(tick), anchor="end", style="dim")
    at = [left + (right - left) * -math.log10(1 - percent / 100) / 2 for percent in range(100)]
    for percent in (0, 25, 50, 75, 90, 95, 99):
        _line(root, "grid", at[percent], top, at[percent], bottom)
        _text(root, at[percent], bottom + 16, f"p{percent}", anchor="middle", style="dim")
    _text(root, (left + right) / 2, bottom + 38, "percentile of requests", anchor="middle", style="dim")
    _text(root, left - 8, top - 12, unit, anchor="end", style="dim")
    for k, curve in curves.items():
        points = " ".join(f"{_px(x)},{_px(bottom - value * scale)}" for x, value in zip(at, curve, strict=False))
        SubElement(root, "polyline", {"class": f"l{k % SERIES}", "points": points})
        for percent in _MARKS:
            place = {"cx": _px(at[percent]), "cy": _px(bottom - curve[percent] * scale)}
            SubElement(root, "circle", {"class": f"s{k % SERIES}", "r": "3.5"} | place)
    # After all curves, which would cross them.
    for curve in _apart(list(curves.values()), scale):
        for percent in _MARKS:
            _text(root, at[percent] - 6, bottom - curve[percent] * scale - 8, number(curve[percent]), anchor="end")
    return _finished(root, bottom + 48)


def nice_ticks(largest: float) -> list[float]:
    """0 and a few round steps that reach the largest value, > 0."""
    largest = largest if largest > 0 and math.isfinite(largest) else 1.0
    rough = largest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(largest / step - 1e-9) + 1)]


def _apart(curves: Sequence[Sequence[float]], scale: float) -> list[Sequence[float]]:
    """Those whose numbers fit above their marks without touching another's; the first one's always do."""
    chosen: list[Sequence[float]] = []
    for curve in curves:
        if all(abs(curve[p] - other[p]) * scale > 2 * _ROW for other in chosen for p in _MARKS):
            chosen.append(curve)
    return chosen


def _root(label: str) -> Element:
    return Element("svg", {"role": "img", "aria-label": label, "xmlns": "http://www.w3.org/2000/svg"})


def _finished(root: Element, height: float) -> str:
    root.set("viewBox", f"0 0 {_WIDTH} {_px(height)}")
    return tostring(root, encoding="unicode")


def _legend(root: Element, names: Sequence[str]) -> float:
    """Drawn in as many lines as it needs; none for one series alone.  Returns where it ends."""
    if len(names) < 2:
        return 0.0
    x, y = float(_LEFT), 6.0
    for k, name in enumerate(names):
        width = 34 + _CHAR * len(name)
        if x + width > _WIDTH and x > _LEFT:
            x, y = float(_LEFT), y + _LINE
        square = {"x": _px(x), "y": _px(y), "width": "12", "height": "12"}
        SubElement(root, "rect", {"class": f"s{k % SERIES}"} | square)
        _text(root, x + 17, y + 10, name)
        x += width
    return y + _LINE


def _line(root: Element, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(root, "line", {"class": style} | {name: _px(value) for name, value in ends.items()})


def _text(root: Element, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> None:
    SubElement(
        root, "text", {"x": _px(x), "y": _px(y), "text-anchor": anchor} | ({"class": style} if style else {})
    ).text = text


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:.6g}"
