"""Bundles: the data a verdict depends on, read, checked and written, with nothing computed from images."""
