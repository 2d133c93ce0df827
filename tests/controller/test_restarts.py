import pickle

import pytest

from llamarl.controller.restarts import RestartBudget
from llamarl.core.errors import ExecutorLostError


def test_executors_that_went_with_one_host_are_one_loss():
    budget = RestartBudget(2)
    for name in ("generator-0", "generator-1", "generator-2"):
        budget.spend(name, ExecutorLostError("host b is lost", "b 1"))
    assert (budget.left, budget.used) == (1, 1)
    budget.spend("generator-0", ExecutorLostError("host b is lost again", "b 2"))
    budget.spend("generator-1", ExecutorLostError("host b is lost again", "b 2"))
    with pytest.raises(ExecutorLostError, match="judge is lost and no restart is left"):
        budget.spend("judge", ExecutorLostError("killed"))


def test_the_event_of_a_loss_survives_pickling():
    error = pickle.loads(pickle.dumps(ExecutorLostError("gone", "b 1")))
    assert (str(error), error.event) == ("gone", "b 1")
