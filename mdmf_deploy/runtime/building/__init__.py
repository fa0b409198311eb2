"""Engines for one GPU: built from a bundle's graph, and cached under a key of everything they depend on."""
