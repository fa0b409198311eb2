"""The MDMF model in PyTorch: DINOv2, the PFS head, and its checkpoints (extra: export)."""
