from collections.abc import Iterator

import pytest
import torch
from tiny_policies import samples_of, tiny_model
from torch import nn

from llamarl.core.records import TrainSample


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> nn.Module:
    return tiny_model()


@pytest.fixture
def batch() -> list[TrainSample]:
    return samples_of([(3, [4, 1, 7]), (6, [2, 5]), (1, [3, 3, 3])])
