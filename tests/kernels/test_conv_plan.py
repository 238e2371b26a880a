from __future__ import annotations

import torch

from bench.networks.extractors import full_float32
from kernels.conv_plan import allow_tf32, precision


def test_precision_follows_the_flags_of_pytorch_old_and_new() -> None:
    with allow_tf32(allowed=True):
        assert precision(torch.float32) == "tf32"
        with full_float32():
            assert precision(torch.float32) == "tf32x3"
            assert precision(torch.float16) == "tf32"
    with allow_tf32(allowed=False):
        assert precision(torch.float32) == "tf32x3"
