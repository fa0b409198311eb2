"""The machine at hand: cores, memory and GPUs, and one small interface to the libraries that drive a GPU."""
