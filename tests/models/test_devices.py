"""Precision of scoring, and how much a device takes at a time."""

from __future__ import annotations

import pytest
import torch

from klassify.errors import KlassifyError
from klassify.models.devices import computing, full_precision


def products() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_a_gpu_computes_in_tf32_unless_asked_otherwise():
    before, gpu = products(), torch.device("cuda")
    with computing(gpu):
        assert products() == ("high", True)
        with full_precision(torch.device("cpu")):
            assert products() == ("high", True)
    assert products() == before
    with computing(gpu, "32"):
        assert products() == ("highest", False)
    with pytest.raises(ZeroDivisionError), computing(gpu, "tf32"):
        raise ZeroDivisionError
    assert products() == before


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_choices_of_the_highest_are_in_full_precision():
    with computing(torch.device("cuda")), full_precision(torch.device("cuda")):
        assert products() == ("highest", False)


def test_a_cpu_computes_in_float32_or_bfloat16():
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    for precision, wanted in ((None, torch.float32), ("32", torch.float32)):
        with computing(cpu, precision):
            assert (x @ x).dtype == wanted
    with computing(cpu, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(cpu):
            assert (x @ x).dtype == torch.float32
    with pytest.raises(KlassifyError, match="CUDA"), computing(cpu, "tf32"):
        pass
