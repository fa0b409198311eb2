"""`mdmf benchmark`: where the milliseconds of a detection go, and how a configuration's speed changes verdicts."""

SCENARIOS = ("single-stream", "offline", "server")
BATCH_SIZE = 8  # the default of Detector and `mdmf detect`; a test holds them together
