import re

import pytest
import torch

from llamarl.core.errors import ConfigError
from llamarl.generation.executor import GeneratorConfig
from llamarl.models.device import computes_like_cpu, describe_device, resolve_device


def test_auto_takes_an_accelerator_where_there_is_one() -> None:
    found = resolve_device("auto")
    if torch.cuda.is_available():
        assert found == "cuda"
    elif not torch.backends.mps.is_available():
        assert found == "cpu"
    assert computes_like_cpu(found)


def test_a_device_that_computes_something_else_is_not_taken() -> None:
    assert computes_like_cpu("cpu")
    assert not computes_like_cpu("meta")  # has every operation, and no values


def test_int8_stays_on_the_cpu_unless_a_device_is_named() -> None:
    assert GeneratorConfig(precision="int8").resolved_device == "cpu"
    assert GeneratorConfig().resolved_device == resolve_device("auto")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_what_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"x\.device='{name}': torch .* finds only cpu.*say auto"):
        resolve_device(name, "x.device")


def test_a_device_in_words() -> None:
    assert re.fullmatch(r"cpu \((1 core|\d+ cores)\)", describe_device("cpu"))
