"""The reduction on an NVIDIA GPU. Start with reduction.py, whose docstring maps the walk."""
