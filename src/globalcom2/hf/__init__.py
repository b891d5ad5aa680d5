"""Between a transformers model and its callers: `compress`, `apply`, `remove`, and what they need.

Here live patching, `generate` and caches, shortening of prompts, reports and loading. No algorithm lives here (that is
`core` and `selectors`), no model family (`adapters`), and no measuring (`lab`).
"""
