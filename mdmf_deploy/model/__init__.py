"""The detector in PyTorch: DINOv2, the PFS head, and the reading of checkpoints (extra: export)."""
