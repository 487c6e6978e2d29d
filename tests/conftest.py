"""What tests of several files stand on."""

import pytest
import torch


@pytest.fixture
def one_intra_op_thread():
    """Bit-equality needs the same summation order in the operators of both sides."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
