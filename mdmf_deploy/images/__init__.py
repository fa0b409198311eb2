"""Images: command-line inputs to files, files to 8-bit RGB, and RGB to the crops that a model takes."""
