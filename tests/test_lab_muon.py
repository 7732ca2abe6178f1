"""Muon's iteration in float32, against singular values in float64 and torch's own in bfloat16."""

import numpy as np
import pytest
import torch
import torch.optim._muon

from resdit_ext.lab import muon

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # torch's


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (12, 4)])
def test_it_acts_on_the_singular_values_alone(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, s, V = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    got = muon.newton_schulz(gradient, COEFFICIENTS, 5, 1e-7)
    np.testing.assert_allclose(got.double().numpy(), U * s @ V, atol=1e-5)
    assert got.dtype == torch.float32


def test_a_gradient_of_zeros_stays_zero():
    assert not muon.newton_schulz(torch.zeros(3, 4), COEFFICIENTS, 5, 1e-7).any()


@pytest.mark.parametrize("fast", [True, False])
def test_it_takes_the_place_of_torchs_where_bfloat16_is_slow(monkeypatch, fast):
    own = torch.optim._muon._zeropower_via_newtonschulz
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if fast else "AVX2")
    start = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))

    def stepped():
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.Muon([weight], lr=0.1)
        weight.grad = start.sin()
        optimizer.step()
        return weight.detach()

    expected = stepped()
    with muon.muon_for_this_cpu():
        got = stepped()
    assert torch.equal(got, expected) == fast
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=0)  # bfloat16's own error
    assert torch.optim._muon._zeropower_via_newtonschulz is own
