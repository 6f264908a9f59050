"""The order of stamps, and the pairs of two cameras."""

import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.node.stamps import WAIT, Pairs, Stamps

MS = 1_000_000
SECOND = 1000 * MS


def test_time_goes_on_or_jumps_back_but_a_message_out_of_order_is_refused():
    stamps = Stamps()
    assert [stamps.take(stamp) for stamp in (100 * SECOND, 101 * SECOND, 101 * SECOND)] == [0, 0, 0]
    with pytest.raises(EdgePoint2Error, match=r'0\.300 s older'):
        stamps.take(101 * SECOND - 300 * MS)
    assert stamps.take(50 * SECOND) == 51
    assert stamps.take(51 * SECOND) == 0


def fill(pairs: Pairs, *sides: str) -> list:
    """Add images ``L`` or ``R`` at milliseconds, as ``L10``; return what becomes ready."""
    ready = []
    for side in sides:
        add = pairs.add_left if side[0] == 'L' else pairs.add_right
        ready += add(int(side[1:]) * MS, side)
    return ready


@pytest.mark.parametrize('sides', [('L100', 'R100', 'L200', 'R200'), ('R100', 'L100', 'R200', 'L200')])
def test_images_of_one_time_are_paired_in_either_order(sides):
    assert fill(Pairs(), *sides) == [('L100', 'R100'), ('L200', 'R200')]


def test_stamps_may_be_three_milliseconds_apart():
    assert fill(Pairs(), 'L100', 'R103', 'L200', 'R197') == [('L100', 'R103'), ('L200', 'R197')]
    assert fill(Pairs(), 'L100', 'R104', 'L200') == [('L100', None)]


def test_an_image_whose_partner_is_missing_does_not_hold_up_the_next():
    pairs = Pairs()
    assert fill(pairs, 'L100', 'L200', 'R200', 'R300', 'L400', 'R400') == [
        ('L100', None),
        ('L200', 'R200'),
        ('L400', 'R400'),
    ]
    assert (pairs.alone, pairs.forgotten, pairs.forgotten_right) == (1, 0, 1)


def test_without_a_right_camera_the_left_one_goes_on_alone():
    sides = [f'L{100 * k}' for k in range(1, 11)]
    assert fill(Pairs(), *sides) == [(side, None) for side in sides[:-WAIT]]


def test_without_a_left_camera_nothing_piles_up():
    pairs = Pairs()
    assert fill(pairs, *(f'R{10 * k}' for k in range(1, 1000))) == []
    assert pairs.forgotten_right > 980


def test_after_time_jumps_back_images_are_paired_again():
    pairs = Pairs()
    fill(pairs, 'L9000', 'R9000', 'L9100', 'L9200')
    assert pairs.waiting == 2
    assert fill(pairs, 'L100', 'R100', 'L200', 'R200') == [('L100', 'R100'), ('L200', 'R200')]
    assert (pairs.alone, pairs.forgotten, pairs.forgotten_right, pairs.waiting) == (0, 2, 0, 0)
    with pytest.raises(EdgePoint2Error, match=r'0\.050 s older'):
        fill(pairs, 'L300', 'L250')


def test_right_images_that_wait_when_time_jumps_back_are_counted_as_such():
    pairs = Pairs()
    fill(pairs, 'R9000', 'R9100', 'R100')
    assert (pairs.alone, pairs.forgotten, pairs.forgotten_right) == (0, 0, 2)
