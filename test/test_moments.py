"""Keypoints, images and depth put together by their stamps, in every order."""

from itertools import permutations

import pytest

from edgepoint2_ros.node.moments import Moments

MS = 1_000_000


def play(moments: Moments, events: list[tuple[str, int]]) -> list[tuple[int, int, int]]:
    """Add messages that are their stamps in ms; return the stamps of what comes out."""
    add = {'k': moments.add_keypoints, 'i': moments.add_image, 'd': moments.add_depth}
    found = []
    for kind, stamp in events:
        found += [tuple(moment) for moment in add[kind](stamp * MS, stamp)]
    return found


@pytest.mark.parametrize('order', list(permutations('kid')), ids=''.join)
def test_messages_of_one_stamp_belong_together_in_whatever_order_they_come(order):
    assert play(Moments(0, 5), [(kind, 7) for kind in order]) == [(7, 7, 7)]


def test_the_nearest_depth_counts_once_a_later_one_has_come():
    events = [('d', 90), ('i', 100), ('k', 100)]
    moments = Moments(20 * MS, 5)
    assert play(moments, events) == []
    assert play(moments, [('d', 105)]) == [(100, 100, 105)]
    moments = Moments(20 * MS, 5)
    assert play(moments, events) == []
    assert play(moments, [('d', 115)]) == [(100, 100, 90)]


def test_depth_that_is_too_far_does_not_count():
    moments = Moments(5 * MS, 5)
    assert play(moments, [('d', 90), ('i', 100), ('k', 100), ('d', 110)]) == []
    assert play(moments, [('i', 120), ('d', 121), ('k', 120)]) == [(120, 120, 121)]
    assert moments.missed == {'no image': 0, 'no depth': 1}


def test_keypoints_without_an_image_are_missed_once_later_ones_are_complete():
    moments = Moments(0, 5)
    assert play(moments, [('k', 1), ('d', 1), ('k', 2), ('i', 2), ('d', 2)]) == [(2, 2, 2)]
    assert moments.missed == {'no image': 1, 'no depth': 0}


def test_images_that_the_extractor_left_out_are_forgotten():
    moments = Moments(0, 3)
    events = [(kind, stamp) for stamp in range(100) for kind in 'id']
    assert play(moments, [*events, ('k', 90), ('k', 98), ('k', 99)]) == [(98, 98, 98), (99, 99, 99)]
    assert moments.missed == {'no image': 1, 'no depth': 0}


def test_no_more_wait_than_may():
    moments = Moments(0, 3)
    assert play(moments, [('k', stamp) for stamp in range(10)]) == []
    assert moments.missed == {'no image': 7, 'no depth': 0}


def test_when_time_jumps_back_what_waited_is_missed_and_the_next_is_answered():
    moments = Moments(0, 5)
    assert play(moments, [('k', 10_000), ('i', 10_000)]) == []
    assert play(moments, [('k', 100), ('i', 100), ('d', 100)]) == [(100, 100, 100)]
    assert moments.missed == {'no image': 0, 'no depth': 1}


@pytest.mark.parametrize('order', list(permutations('kid')), ids=''.join)
def test_after_time_jumps_back_depth_of_the_future_is_no_later_depth(order):
    """It would make the depth before an image final, although a nearer one is about to come."""
    moments, late = Moments(20 * MS, 5), {'k': 0, 'i': 0, 'd': 15}
    before = [(kind, 60_000 + 33 * k + late[kind]) for k in range(4) for kind in 'ikd']
    assert play(moments, before)[-1] == (60_099, 60_099, 60_114)
    after = [(kind, 33 * k + late[kind]) for k in range(40) for kind in order]
    assert play(moments, after) == [(33 * k, 33 * k, 33 * k + 15) for k in range(40)]


def test_what_is_missing_is_what_the_oldest_keypoints_lack():
    moments = Moments(0, 5)
    assert moments.missing == ''
    play(moments, [('k', 1)])
    assert moments.missing == 'no image'
    play(moments, [('i', 1), ('k', 2)])
    assert moments.missing == 'no depth'
    play(moments, [('d', 1)])
    assert moments.missing == 'no image'
    play(moments, [('i', 2), ('d', 2)])
    assert moments.missing == ''


def test_the_last_depth_of_a_stamp_counts():
    moments = Moments(20 * MS, 5)
    assert moments.add_depth(7, 'old') == moments.add_depth(7, 'new') == moments.add_image(7, 'image') == []
    assert moments.add_keypoints(7, 'keypoints') == [('keypoints', 'image', 'new')]


def test_keypoints_may_come_long_after_images_that_do_not_wait_for_them():
    moments, found = Moments(20 * MS, 10), []
    for number in range(6):
        found += moments.add_image(number * 1000 * MS, f'image {number}')
        found += moments.add_depth(number * 1000 * MS, f'depth {number}')
        if number >= 2:  # an extractor that is two images behind
            late = number - 2
            found += moments.add_keypoints(late * 1000 * MS, f'keypoints {late}')
    assert [moment.image for moment in found] == [f'image {number}' for number in range(4)]
    assert [moment.depth for moment in found] == [f'depth {number}' for number in range(4)]
    assert sum(moments.missed.values()) == 0


def test_a_capacity_of_one_still_finds_the_nearest_depth():
    moments = Moments(interval=50, capacity=1)
    moments.add_depth(90, 'depth')
    moments.add_image(100, 'image')
    assert moments.add_keypoints(100, 'keypoints') == []
    assert moments.add_depth(190, 'later') == [('keypoints', 'image', 'depth')]
