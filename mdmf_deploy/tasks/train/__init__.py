"""`mdmf train`: train a detector by its test power (extra: export).

train.py         one run, from folders to a checkpoint
data.py          files, sources and parts
batches.py       random crops, with augment.py, featureless.py and pairs.py (by autoencoders.py)
features.py      cached features of a frozen backbone
network.py       the network, lora.py, and the start of a backbone from scratch
objectives.py    the loss to minimise
phases.py        what a run reports while it goes
smoke.py         a run shrunk to a minute
loop.py          steps, saved states, resuming
validate.py      figures on the validation part (measured.py), the gate, and history.py
"""
