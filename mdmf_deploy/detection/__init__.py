"""Inputs to rows.

detector.py: a bundle, an engine and a reduction, opened once. It calls the modules below and makes a row of each image.
sources.py: paths, bytes, file objects, arrays and Pillow images, with or without a name.
feed.py: threads that read, decode and crop the sources, in order.
pipeline.py: batches of crops through the engine, while the next ones are being decoded.
on_gpu.py: the same with the reduction on the GPU.
verdicts.py: scores to verdicts. second_look.py: again near the threshold. discoveries.py: all rows of a run together.
rows.py, schema.py: the columns of a row, its text, and its JSON Schema. outputs/: files of rows, and heat maps.
"""
