"""A checkpoint for the commands: smaller than the mini model, so that tests are quick."""

import pytest

from tiny import llava_next


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A LLaVA-NeXT with random weights, saved as any hub checkpoint is."""
    folder = tmp_path_factory.mktemp("checkpoint")
    made = llava_next()
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return str(folder)
