"""What each model family needs: where its scores, its grid and its packing come from. One file per family or group.

This is the only wing that knows the insides of transformers' models. It knows nothing of calls, prompts and caches.
`families.py` is the registry and stays light; importing this package loads nothing.
"""
