"""Between vision tower and language model the host waits once for the device, however many images there are.

Without a GPU (`test_cuda.py` asks one): values that come from the tower are followed through the call, and an operation whose
result the host needs to go on (a number, a size) counts. `.cpu()` is what makes a value the host's own.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from globalcom2 import compress
from tiny import picture

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}


class Following(TorchDispatchMode):
    """Follows what is computed from marked tensors and notes operations that make a host wait for them."""

    def __init__(self):
        super().__init__()
        self.marked = WeakIdKeyDictionary()
        self.waits, self.copies, self.followed, self.most, self.on = [], 0, 0, 0, False

    def mark(self, tensor):
        self.marked[tensor] = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not self.on:
            return out
        self.most = max(self.most, len(torch.utils._pytree.tree_leaves(out)))
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(x in self.marked for x in given):
            by_mask = function is aten.index.Tensor and any(
                x is not None and x.dtype == torch.bool and x in self.marked for x in args[1]
            )
            if function in WAITS or by_mask:
                self.waits.append(str(function))
            self.followed += 1
            for made in torch.utils._pytree.tree_leaves(out):
                if isinstance(made, torch.Tensor):
                    self.mark(made)
        return out


@pytest.mark.parametrize("method", ["globalcom2", "uniform", "random"])
@pytest.mark.parametrize("options", [{}, {"newlines": "all"}, {"newlines": "none"}, {"positions": "original"}])
def test_one_wait_between_tower_and_language_model(tiny, monkeypatch, method, options):
    inputs = tiny.inputs(
        ["a <image> b <image>", "<image>", "none"], [picture(168, 168, 1), picture(60, 200, 2), picture(400, 100, 3)]
    )
    following, model = Following(), tiny.model.model
    real = torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        if following.on and tensor in following.marked:
            following.copies += 1
            return torch.from_numpy(tensor.numpy().copy())  # no operation that would be followed
        return real(tensor, *args, **kwargs)

    def tower_done(module, args, output):
        following.on = True
        for hidden in output.hidden_states:
            following.mark(hidden)

    def model_begins(module, args, kwargs):
        following.on = False

    from globalcom2.adapters import tap

    record = tap.attention_row
    monkeypatch.setattr(tap, "attention_row", lambda *a, **k: _marked(record(*a, **k), following))
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    hooks = [
        model.vision_tower.register_forward_hook(tower_done),
        model.language_model.register_forward_pre_hook(model_begins, with_kwargs=True),
    ]
    try:
        with torch.no_grad(), compress(tiny.model, 0.3, method, **options), following:
            tiny.model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert following.followed > 50
    assert following.waits == []
    assert following.copies == 1
    assert following.most < 20, "an operation made as many tensors as there are tokens"


def _marked(row, following):
    following.mark(row)
    return row
