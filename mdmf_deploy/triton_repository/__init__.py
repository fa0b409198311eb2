"""A Triton model repository of a bundle: stock servers score without this package."""
