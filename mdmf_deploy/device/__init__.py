"""GPUs: what can be asked of one, and who carries it out."""
