"""Greedy calls, shared by the tests of compressed models."""

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
IMAGE_ROWS = [0, 0, 1, 3]
"""The prompt of each image of the fixture `batch`."""


def generate(model, inputs, **kwargs):
    return model.generate(**inputs, **{**GREEDY, **kwargs})
