"""`mdmf benchmark`: where the milliseconds of a detection go, and what a configuration's speed costs in verdicts.

These constants are here because the command line needs them and imports nothing heavy.
"""

SCENARIOS = ("single-stream", "offline", "server")
BATCH_SIZE = 8  # the default of Detector and `mdmf detect`; a test holds them together
