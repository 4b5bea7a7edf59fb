import math

import pytest

from nnunet_partial.losses import ramps


@pytest.mark.parametrize(
    "t, expected",
    [(0, math.exp(-5)), (5, math.exp(-5 * 0.5**2)), (7.5, math.exp(-5 * 0.25**2)), (10, 1), (11, 1), (-1, math.exp(-5))],
)
def test_gaussian(t, expected):
    assert ramps.gaussian(t, 10) == pytest.approx(expected, abs=1e-15)
    assert isinstance(ramps.gaussian(t, 10), float)


def test_no_ramp():
    assert ramps.gaussian(0, 0) == 1.0


def test_gaussian_rises():
    values = [ramps.gaussian(t, 1000) for t in range(0, 1001, 10)]
    assert values == sorted(values) and len(set(values)) == len(values)


def test_negative_length_is_an_error():
    with pytest.raises(ValueError, match="t_max is -1"):
        ramps.gaussian(0, -1)
