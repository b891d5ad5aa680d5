"""Drawings of what was kept, without a model: the shades and outlines of all pictures, and the page to look at.

Knows `core`, Pillow and numpy. Pictures of matplotlib are made in `lab`.
"""
