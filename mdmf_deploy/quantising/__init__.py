"""The precision ladder's lower rungs: an fp32 graph rewritten as fp16, or as int8 with explicit Q/DQ (extra: export).

Precision lives in the graph, so every runtime runs the same numbers (DESIGN.md, "Facts", GPU).
"""
