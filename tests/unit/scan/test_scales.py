from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.scan.scales import Scales, scale_blocks


@pytest.mark.parametrize(
    ("shape", "scales", "block"),
    [
        ((6, 8), (), (6, 8)),
        ((6, 8), (1, 1), (6, 8)),
        ((6, 8), (6,), (1, 8)),
        ((6, 8), (6, 1), (1, 8)),
        ((6, 8), (3, 2), (2, 4)),
        ((256, 384), (2, 3), (128, 128)),
        # a last block that is cut short: the widths are DeepSeek's
        ((200, 300), (2, 3), (128, 128)),
        ((4096, 64), (4096, 2), (1, 32)),
        ((6, 8), (5, 2), None),
        ((6, 8), (2, 3, 1), None),
        ((6, 8), (8,), None),
        ((6, 8), (0, 2), None),
    ],
)
def test_the_block_of_a_scale_is_known_from_both_shapes(shape, scales, block):
    assert scale_blocks(shape, scales) == block


@pytest.mark.parametrize(("shape", "count"), [((200, 300), (2, 3)), ((6, 8), (3, 2)), ((6, 8), (6, 1)), ((6, 8), (1, 1))])
def test_parts_of_the_spread_scales_are_those_of_the_whole(shape, count):
    values = np.random.default_rng(0).uniform(1, 2, count)
    rows, columns = scale_blocks(shape, count)
    whole = np.kron(values, np.ones((rows, columns)))[: shape[0], : shape[1]]
    scales = Scales(values, shape)
    np.testing.assert_array_equal(scales.of(slice(0, shape[0]), slice(0, shape[1])), whole)
    np.testing.assert_array_equal(scales.of(slice(1, 5), slice(3, 8)), whole[1:5, 3:8])
