"""Compress a reference bank to a few points with signed weights, and bound the error of every score.

See docs/method.md, "Compressed banks".
"""
