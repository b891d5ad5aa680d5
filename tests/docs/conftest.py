"""Tests of README and docs. Those that take long run where the documentation is built: `make test-docs`."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("mkdocs") else ["test_blocks.py", "test_examples.py", "test_site.py"]
