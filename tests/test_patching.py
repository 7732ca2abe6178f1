"""What is changed of other people's objects, and that it is put back: by threads, nested, after errors."""

import inspect
import threading
from types import ModuleType

import pytest
import torch
from torch import nn

from resdit_ext.monkeypatch import AROUND, intercept, intercepted, let_go, rebound, redirected


@pytest.fixture
def module():
    made = ModuleType("theirs")
    exec("def double(x): return 2 * x\ndef use(x, *, more=1): return double(x) + more", vars(made))  # noqa: S102
    return made


def test_nested_redirections_each_go_their_own_way(module):
    module.triple = lambda x: 3 * x
    with redirected(module, "double", lambda _, x: -x), redirected(module, "triple", lambda _, x: x + 100):
        assert (module.double(1), module.triple(1)) == (-1, 101)
        with redirected(module, "double", lambda _, x: 7 * x):
            assert module.use(1) == 8
        assert module.use(1) == 0
    assert (module.use(1), module.triple(1)) == (3, 3)


def test_the_second_of_two_threads_to_leave_puts_the_function_back(module):
    original, entered, leave, seen = module.double, threading.Barrier(3), threading.Event(), {}

    def work(factor, wait):
        with redirected(module, "double", lambda _, x: factor * x):
            entered.wait(timeout=10)
            if wait:
                leave.wait(timeout=10)
            seen[factor] = module.use(1)

    threads = [threading.Thread(target=work, args=pair) for pair in ((10, False), (20, True))]
    for thread in threads:
        thread.start()
    entered.wait(timeout=10)
    threads[0].join(timeout=10)
    assert module.use(1) == 3, "a thread that redirects nothing calls the function itself"
    leave.set()
    threads[1].join(timeout=10)
    assert seen == {10: 11, 20: 21} and module.double is original


def test_a_redirection_ends_with_an_error(module):
    original = module.double
    with pytest.raises(KeyError), redirected(module, "double", lambda _, x: x):
        raise KeyError
    assert module.double is original


class Adder(nn.Module):
    """Adds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, *, twice: bool = False):
        return self.layer(x) * (2 if twice else 1)

    def name(self):
        return "adder"


def test_one_object_is_intercepted_and_only_it():
    ours, other = Adder(), Adder()
    other.load_state_dict(ours.state_dict())
    x = torch.ones(1, 2)
    plain, signature = ours(x), inspect.signature(ours.name)
    intercept(ours, "__call__", lambda call, x, **more: 10 * call(x, **more))
    intercept(ours, "name", lambda call: f"our {call()}")
    assert torch.equal(ours(x, twice=True), 20 * plain) and ours.name() == "our adder"
    assert torch.equal(other(x), plain) and other.name() == "adder"
    assert isinstance(ours, Adder) and type(ours).__name__ == "Adder" and type(ours).__doc__ == "Adds."
    assert inspect.signature(ours.name) == signature and "forward" not in vars(ours)
    let_go(ours)
    let_go(ours)
    assert type(ours) is Adder and AROUND not in vars(ours) and torch.equal(ours(x), plain)


def test_the_same_class_is_found_again():
    first, second = Adder(), Adder()
    for adder in (first, second):
        intercept(adder, "__call__", lambda call, x: call(x))
    assert type(first) is type(second)


def test_a_method_that_was_kept_goes_on_after_it_is_let_go():
    adder, x = Adder(), torch.ones(1, 2)
    plain = adder(x)
    intercept(adder, "__call__", lambda call, x: -call(x))
    kept = adder.__call__
    assert torch.equal(kept(x), -plain)
    let_go(adder)
    assert torch.equal(kept(x), plain)


def test_intercepted_lets_go_after_an_error_and_of_those_before_a_bad_one():
    first, second = Adder(), Adder()
    with pytest.raises(KeyError), intercepted([(first, "name", lambda call: call()), (second, "name", lambda c: c())]):
        raise KeyError
    assert type(first) is type(second) is Adder
    with (
        pytest.raises(AttributeError),
        intercepted([(first, "name", lambda call: ""), (second, "absent", lambda c: "")]),
    ):
        pass
    assert type(first) is type(second) is Adder and AROUND not in vars(second)


def test_a_rebound_function_finds_other_names_and_its_own_defaults(module):
    assert rebound(module.use, double=lambda x: 50 * x)(1) == 51
    assert rebound(module.use, double=lambda x: 50 * x)(1, more=2) == 52
    assert module.use(1) == 3
