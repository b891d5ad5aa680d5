"""Measuring: evaluation, analysis, costs, benchmarks, plots and pictures.

What stands here uses the package as a caller does. Nothing that compresses a call may import it.
"""
