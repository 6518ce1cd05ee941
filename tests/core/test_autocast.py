"""The precision in which attention takes its tokens."""

import torch

from t2mv_core.autocast import in_autocast_dtype


def test_tokens_take_autocasts_precision_where_it_is_on():
    tokens = torch.ones(2, 3)
    assert in_autocast_dtype(tokens) is tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert in_autocast_dtype(tokens).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert in_autocast_dtype(tokens) is tokens
    meta = tokens.to("meta")  # where memory is counted; it has no autocast
    assert in_autocast_dtype(meta) is meta
