from llamarl.judges.llm.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_try_through() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 30.0, clock)
    breaker.note_failure(started=0.0)
    assert breaker.allows() and not breaker.is_open
    breaker.note_failure(started=0.0)
    assert breaker.is_open and not breaker.allows()
    clock.now = 30.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.note_success()
    assert [breaker.allows() for _ in range(3)] == [True] * 3


def test_how_long_it_has_been_open_and_late_failures_put_nothing_off() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 30.0, clock)
    assert breaker.open_seconds == 0.0
    for clock.now in (0.0, 5.0, 20.0):  # open since 5
        breaker.note_failure(started=0.0)
    assert breaker.open_seconds == 15.0
    clock.now = 35.0
    assert breaker.allows()
    breaker.note_failure(started=35.0)
    clock.now = 65.0
    assert breaker.open_seconds == 60.0 and breaker.allows()
    breaker.note_success()
    assert breaker.open_seconds == 0.0


def test_failures_of_tries_that_others_overtook_do_not_count() -> None:
    """16 tries begin at 0; half of them succeed at 1, the others give up at 300: the server is not down."""
    clock = Clock()
    breaker = CircuitBreaker(8, 30.0, clock)
    clock.now = 1.0
    for _ in range(8):
        breaker.note_success()
    clock.now = 300.0
    for _ in range(8):
        breaker.note_failure(started=0.0)
    assert not breaker.is_open
    for _ in range(8):  # these began after the last success
        breaker.note_failure(started=2.0)
    assert breaker.is_open
