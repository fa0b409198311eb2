"""Compressing a reference bank: few points with signed weights, and a certificate of what that changes.

rows.py       where the signatures are: in memory, or in a file that is never read whole
kernel.py     float64 kernel values in tiles, and how far rounding can move them
choosing.py   which points to keep
fitting.py    their weights and the certificate
gathering.py  blocks of a bank that is still being gathered, compressed and merged
carrying.py   what a changed bank leaves of a bundle's calibration and verification
bundles.py    a bundle in, a bundle out
"""

from mdmf_deploy.mmd.compress.bank_rows import BankFile, BankRows, MemoryRows
from mdmf_deploy.mmd.compress.fit import Fitted, compress
from mdmf_deploy.mmd.compress.stream import Gathered, Gathering
from mdmf_deploy.tasks.bank.compress import Compressed, compress_bundle

__all__ = [
    "BankFile",
    "BankRows",
    "Compressed",
    "Fitted",
    "Gathered",
    "Gathering",
    "MemoryRows",
    "compress",
    "compress_bundle",
]
