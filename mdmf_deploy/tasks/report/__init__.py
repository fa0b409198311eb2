"""A run as one HTML page: every row with its picture, its heat map and its evidence, readable offline.

`report.py` collects rows, `pictures.py` draws them, `words.py` puts them in words, `page.py` writes the page.
"""
