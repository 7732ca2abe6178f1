"""What a run keeps of what it made."""

from resdit_ext.method.run import KEPT, Run
from tests.settings import scaled


def test_what_is_used_in_turn_is_made_once():
    """Two lengths of text on the four sizes of a picture's tiles, in every block."""
    run, made = Run(scaled()), []
    for _ in range(3):
        for key in range(KEPT):
            assert run.cached(key, lambda key=key: made.append(key) or key) == key
    assert made == list(range(KEPT)) and KEPT >= 8


def test_what_was_not_used_for_the_longest_is_dropped():
    run, made = Run(scaled()), []
    for key in (*range(KEPT), 0, "new", 0, 1):
        run.cached(key, lambda key=key: made.append(key) or key)
    assert made == [*range(KEPT), "new", 1]


def test_what_is_made_may_need_what_is_kept():
    run = Run(scaled())
    assert run.cached("plan", lambda: run.cached("table", lambda: 3) + 1) == 4
    assert run.cached("table", lambda: 0) == 3


def test_released_it_is_made_again():
    run = Run(scaled())
    run.cached("plan", lambda: 1)
    run.release()
    assert run.cached("plan", lambda: 2) == 2
