"""`mdmf benchmark`: where every millisecond of a detection goes, and what a configuration's speed costs in verdicts."""

SCENARIOS = ("single-stream", "offline", "server")
BATCH_SIZE = 8  # the default of Detector and `mdmf detect`; a test holds them together
