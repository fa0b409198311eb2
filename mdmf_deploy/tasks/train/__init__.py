"""`mdmf train`: train a detector by its test power (extra: export).

train.py         one run, from folders to a checkpoint
data.py          files, parts and random crops
pairs.py         matched views, and reconstructions by the autoencoders.py
features.py      cached features of a frozen backbone
network.py       the network, and the start of a backbone from scratch
objectives.py    the test power to maximise
loop.py          steps, saved states, resuming
validate.py      validation AUROC, and the history of a run
"""
