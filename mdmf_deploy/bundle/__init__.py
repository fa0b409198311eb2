"""Bundles: the data a verdict depends on, read, checked and written, with nothing computed from images."""

# The bundles in the package. The first is used where none is named.
SHIPPED_BUNDLES = ("dinov2s", "starter")
DEFAULT_BUNDLE = SHIPPED_BUNDLES[0]
