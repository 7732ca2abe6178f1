"""Scenes of photographs: the distance of textures tells what the eye tells, and is zero for the same picture."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from resdit_ext.lab.photographs import (
    OF_GROUND,
    OF_SHAPE,
    REDUCTION,
    cut,
    measure_photographs,
    patterns,
    photograph,
    texture_distance,
)
from resdit_ext.lab.scenes import GROUNDS, SHAPES, random_scene, render
from resdit_ext.method.config import ResDiTConfig
from resdit_ext.method.layout import Grid, make_layout

LAYOUT = make_layout(Grid(48, 48), ResDiTConfig(base_tokens=256))


def scene_of(seed):
    return random_scene(np.random.default_rng(seed))


def figures_of(picture, seed):
    return measure_photographs(picture, scene_of(seed).prompt, LAYOUT, seed)


def test_every_shape_and_ground_has_a_photograph():
    assert set(OF_SHAPE) == set(SHAPES) and set(OF_GROUND) == set(GROUNDS)
    assert set(OF_SHAPE.values()) | set(OF_GROUND.values()) == set(REDUCTION)


@pytest.mark.parametrize("name", REDUCTION)
def test_a_cut_goes_on_mirrored(name):
    whole = photograph(name)
    n = len(whole)
    assert whole.min() == -1 and whole.max() == 1
    wide = cut(name, 8, 2 * n, (0, 0))
    np.testing.assert_array_equal(wide[:, :n], whole[:8])
    np.testing.assert_array_equal(wide[:, n:], whole[:8, ::-1])
    np.testing.assert_array_equal(cut(name, 8, 5, (0, np.pi))[:, 0], whole[:8, -1])  # pi: half of there and back


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_orders_pictures_as_the_eye_does(seed):
    scene = scene_of(seed)
    other_cut = render(replace(scene, phases=(1.0, 2.0, 3.0)), 192, 192, patterns)
    soft = ndimage.gaussian_filter(other_cut, (0.7, 0.7, 0))
    enlarged = ndimage.zoom(render(scene, 64, 64, patterns), (3, 3, 1), order=3).clip(0, 1)
    truth, soft, enlarged, drawn = (
        figures_of(picture, seed) for picture in (other_cut, soft, enlarged, render(scene, 192, 192))
    )
    for name in ("far_object", "far_ground"):
        far = [getattr(figures, name) for figures in (truth, soft, enlarged, drawn)]
        assert far[0] < far[1] and far[0] < 0.25, (name, far)
        assert min(far[2:]) > 1.5 * far[0], (name, far)
    assert truth.ok and truth.psd_hf < 0.3


def test_the_same_picture_is_at_no_distance_and_a_missing_object_is_flat():
    scene = scene_of(3)
    picture = render(scene, 192, 192, patterns)
    whole = np.ones((192, 192), bool)
    assert texture_distance(picture, picture, whole) == 0
    flat = texture_distance(np.full_like(picture, 0.5), picture, whole)
    bare = render(replace(scene, side=1e-3), 192, 192, patterns)
    assert flat > 0.5 and figures_of(bare, 3).far_object > 0.5
