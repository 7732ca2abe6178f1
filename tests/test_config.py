import math

import pytest

from resdit_ext import BALANCED, PAPER, SCALED, ResDiTConfig, ResDiTError
from tests.settings import differences


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("global_until", 1.5, "0 to 1"),
        ("global_until", float("nan"), "0 to 1"),
        ("cutoff", -0.1, "0 to 1"),
        ("cutoff", "0.2", "0 to 1"),
        ("cutoff_unit", "pixels", "'nyquist', 'sampling'"),
        ("attention_scale", "cube", "'off', 'sqrt-log', 'log'"),
        ("attention_scale", 9.0, "0.5 to 2"),
        ("attention_scale", True, "0.5 to 2"),
        ("base_tokens", 4096.0, "4 to 65536"),
        ("base_shape", "round", "'aspect', 'square'"),
        ("splice_sigma", 0, "0.05 to 2"),
        ("chunk_mb", 0, "1 to 65536"),
        ("fusion", "sum", "'frequency', 'mean'"),
        ("splice", None, "'gaussian', 'mean'"),
        ("pes", 2, "True, False"),
    ],
)
def test_bad_value_is_named_with_its_range(field, value, allowed):
    with pytest.raises(ResDiTError) as error:
        ResDiTConfig(**{field: value})
    assert str(error.value).startswith(f"{field} is {value!r}") and allowed in str(error.value)


def test_phases_in_the_wrong_order_are_refused():
    with pytest.raises(ResDiTError, match=r"fused_until is 0\.1, below global_until 0\.5"):
        ResDiTConfig(layout="scaled", global_until=0.5, fused_until=0.1)
    assert ResDiTConfig(global_until=0.5, fused_until=0.1).fused_until == 0.1  # the one has no effect


def test_attention_scale_formulas():
    n, n0 = 65536 + 512, 4096 + 512
    assert ResDiTConfig(attention_scale="log").logit_scale(n, n0) == math.log(n) / math.log(n0)
    assert ResDiTConfig(attention_scale="sqrt-log").logit_scale(n, n0) == pytest.approx(1.15, abs=0.005)
    assert ResDiTConfig(attention_scale="off").logit_scale(n, n0) == 1
    assert ResDiTConfig(attention_scale=1.25).logit_scale(n, n0) == 1.25
    assert ResDiTConfig().logit_scale(n0, n0) == 1


def test_the_two_named_settings():
    assert (PAPER.global_until, PAPER.fused_until, PAPER.cutoff) == (0.285, 0.57, 0.2)
    assert PAPER.attention_scale == "off"
    assert differences(SCALED, PAPER) == {"fused_until": 1.0, "attention_scale": "log"}
    ours = {"layout": "base", "speed": "fast", "borders": "moving", "splice_sigma": 0.15}
    ours |= {"cutoff": 0.75, "cutoff_unit": "base", "fresh_noise": 1.0}
    assert differences(BALANCED, SCALED) == ours
