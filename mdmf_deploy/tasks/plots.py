"""Figures by matplotlib, without its global state, and without folders of its own in the home."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import cache_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure.  width, height: inches. Raises ModuleNotFoundError if matplotlib is not installed."""
    with _font_list_in_cache():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def encoded(figure: Figure, format: str) -> bytes:
    """Return a figure as the bytes of a file.  format: one of FORMATS. The same figure gives the same bytes.

    A character that the font lacks becomes a box in a PNG. In an SVG, text stays text.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Without a salt, SVG gets identifiers that change from run to run.
    with mpl.rc_context({"svg.hashsalt": "mdmf", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(buffer, format=format, dpi=120, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


@contextlib.contextmanager
def _font_list_in_cache() -> Iterator[None]:
    """Import matplotlib in this context: the list of fonts that it makes goes to our cache folder.

    Otherwise it makes folders of its own in the home, and so does fontconfig, which it asks for fonts. Without a cache
    folder that can be written to, the list goes to a temporary folder.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = str(cache_folder("matplotlib"))
        except UsageError:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mdmf-"))
        before = {name: os.environ.get(name) for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
        os.environ.update(dict.fromkeys(before, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
