"""The pure part: views of an image in, a mask of the surviving tokens out.

Here live budgets, allocation, selection, layouts, score formulas and the registry of selectors. Nothing here knows a
model: no transformers, no vLLM, no files. It imports `globalcom2.errors` and torch alone.
"""
