import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.engine.cores import Cores


def test_golden_who_is_alone_gets_all_and_two_split_by_weight():
    granted = []
    cores = Cores(8, granted.append, {"trainer": 3.0})
    with cores.using("generator") as adjust:  # 8 * 1 / 1 = 8
        with cores.using("trainer"):  # 8 * 3 / (3 + 1) = 6
            assert adjust() == 2  # 8 * 1 / (3 + 1) = 2
        assert adjust() == 8
    assert granted == [8, 6, 2, 8]


def test_cores_that_are_not_split_are_everybodys():
    cores = Cores(8, lambda _: None, {"trainer": 3.0}, is_split=False)
    with cores.using("generator") as adjust, cores.using("trainer"):
        assert adjust() == cores.share("trainer") == 8


def test_everybody_has_at_least_one():
    cores = Cores(2, lambda _: None)
    with cores.using("a"), cores.using("b"), cores.using("c") as adjust:
        assert adjust() == 1  # round(2 / 3)
    assert Cores(1, lambda _: None, {"b": 99.0}).share("a") == 1


def test_two_threads_of_one_name_count_once_and_an_error_leaves():
    cores = Cores(4, lambda _: None)
    with cores.using("a"), pytest.raises(RuntimeError), cores.using("a"):
        assert cores.share("b") == 2
        raise RuntimeError
    assert cores.share("b") == 4


def test_the_calling_thread_is_the_one_that_is_set():
    setters = []
    cores = Cores(2, lambda _: setters.append(threading.get_ident()))

    def work():
        with cores.using("a"):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    identity = thread.ident
    thread.join()
    assert setters == [identity]


@given(st.integers(1, 64), st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_shares_add_up_to_the_total_within_rounding(total: int, weights: list[float]):
    names = [str(i) for i in range(len(weights))]
    cores = Cores(total, lambda _: None, dict(zip(names, weights, strict=True)))
    for name in names:
        cores._mark(name, 1)
    assert abs(sum(cores.share(name) for name in names) - total) <= len(names)


def test_rejects():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        Cores(0, print)
    with pytest.raises(ConfigError, match=r"weight of 'a' must be above 0, got -1\.0"):
        Cores(2, print, {"a": -1.0})
