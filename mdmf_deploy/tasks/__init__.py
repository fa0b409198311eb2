"""The commands of `mdmf` that combine the packages below: one module or package each. Nothing below imports them.

export/       `mdmf export`: turn a checkpoint into a verified bundle
triton/       `mdmf export --triton`: write a bundle as a model repository for Triton Inference Server
bank/         `mdmf bank`: build, compress and inspect reference banks
train/        `mdmf train`: train a detector by its test power
evaluate/     `mdmf evaluate`: measure a bundle on images whose class is known
scale/        `mdmf detect --engine ray`: spread a run over processes and machines, from and to object stores
benchmark/    `mdmf benchmark`: time a bundle by stage, scenario and runtime
calibrate.py  `mdmf calibrate`: set thresholds from real photographs
verify.py     `mdmf verify`: hold a runtime's decisions to those of the source
coverage.py   verify the runtimes that `mdmf calibrate` and `mdmf bank compress` need
doctor.py     `mdmf doctor`: report what this machine can run
"""
