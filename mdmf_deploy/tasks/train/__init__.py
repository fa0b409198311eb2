"""Training: the test-power objectives, the aligned pairs, and the loop (extra: export)."""
