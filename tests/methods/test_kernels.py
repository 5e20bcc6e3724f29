"""What the table of torch's kernels says, by which a pretended device refuses what the device has not."""

import pytest
import torch

from kernels import has_kernel
from pretended_device import DEVICE, pretended_device, pretended_mps


@pytest.mark.parametrize(
    ("operation", "on_cuda", "on_mps"),
    [
        ("aten.add.Tensor", True, True),
        ("aten.mm.default", True, True),
        ("aten.expand.default", True, True),
        ("aten.linalg_eig.default", True, False),
        ("aten.mkldnn_max_pool2d.default", False, False),
        ("mine.own.default", False, False),
    ],
)
def test_the_table_is_read(operation, on_cuda, on_mps):
    assert (has_kernel(operation, "CUDA"), has_kernel(operation, "MPS")) == (on_cuda, on_mps)


def test_a_pretended_device_refuses_what_has_no_kernel_there():
    with pretended_mps(), pytest.raises(NotImplementedError, match="for MPS"):
        torch.linalg.eigvals(torch.eye(2).to("mps"))
    with pretended_device(), pytest.raises(NotImplementedError, match="for CUDA"):
        torch.mkldnn_max_pool2d(torch.ones(1, 1, 4, 4).to(DEVICE), 2)
