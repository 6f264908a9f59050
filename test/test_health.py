"""The health of a camera: counters that add up, periods, and verdicts in words."""

import math

import pytest

from edgepoint2_ros.node.health import ERROR, OK, REASONS, TYPES, WARN, Health, explain_types, judge

TIMES = (0.001, 0.002, 0.003, 0.004, 0.010, 0.050)
RAW, COMPRESSED = TYPES['raw'], TYPES['compressed']


def verdict(health: Health, now: float, silence: str = 'it has no publisher', masks: str = ''):
    return judge(health.end_period(now), health, '/left/image', silence, masks)


def feed(health: Health, count: int, begin: float = 0.0, keypoints: int = 500):
    for number in range(count):
        health.arrive(begin + number / 30)
        health.serve(keypoints, TIMES)


def test_a_period_has_its_own_images_and_counters_have_all():
    health = Health(0.0)
    feed(health, 30)
    period = health.end_period(1.0)
    assert (period.received, period.processed, period.rate_in, period.rate_out) == (30, 30, 30.0, 30.0)
    assert period.keypoints == 500
    assert period.times['extract'] == pytest.approx((3, 3, 3))
    assert period.times['latency'] == pytest.approx((10, 10, 10))
    feed(health, 10, begin=1.0)
    period = health.end_period(3.0)
    assert (period.received, period.rate_in) == (10, 5.0)
    assert (health.received, health.processed, health.waiting) == (40, 40, 0)


def test_the_slow_ones_are_seen():
    health = Health(0.0)
    for latency in [0.01] * 90 + [0.1] * 10:
        health.arrive(0.5)
        health.serve(1, (0, 0, 0, 0, latency, 0))
    mean, high, most = health.end_period(1.0).times['latency']
    assert (mean, high, most) == pytest.approx((19, 100, 100))


def test_a_period_without_images_has_no_times():
    period = Health(0.0).end_period(1.0)
    assert all(math.isnan(value) for values in period.times.values() for value in values)


def test_every_image_is_somewhere():
    health = Health(0.0)
    feed(health, 5)
    for number, reason in enumerate(REASONS, start=1):
        for _ in range(number):
            health.arrive(0.5)
        health.drop(reason, number)
    health.arrive(0.6)
    assert health.waiting == 1
    assert health.received == health.processed + sum(health.dropped.values()) + health.waiting
    assert health.end_period(1.0).dropped == {reason: number for number, reason in enumerate(REASONS, start=1)}


def test_a_camera_that_works_is_ok():
    health = Health(0.0)
    feed(health, 30)
    assert verdict(health, 1.0) == (OK, '30.0 images/s, latency 10.0 ms')


def test_silence_is_told_apart():
    health = Health(0.0)
    assert verdict(health, 1.0) == (OK, 'no image in this second')
    assert verdict(health, 3.0) == (WARN, 'no image yet on /left/image: it has no publisher')
    feed(health, 1, begin=5.0)
    assert verdict(health, 5.5)[0] == OK
    assert verdict(health, 15.0) == (ERROR, 'no image for 10 s on /left/image: it has no publisher')


def test_a_camera_that_nobody_asks_for_is_neither_silent_nor_forgotten():
    health = Health(0.0)
    feed(health, 5)
    health.pause()
    assert verdict(health, 1.0) == (OK, '5.0 images/s, latency 10.0 ms')  # those that waited are answered
    assert verdict(health, 60.0) == (OK, 'idle: no subscribers to keypoints, place or overlay')
    health.resume(60.0)
    assert verdict(health, 61.0) == (OK, 'no image in this second')
    assert verdict(health, 63.0) == (WARN, 'no image yet on /left/image: it has no publisher')
    assert (health.received, health.processed) == (5, 5)


@pytest.mark.parametrize(
    ('transport', 'topic', 'published', 'reason'),
    [
        ('raw', '/cam', {}, ''),
        ('compressed', '/cam/compressed', {}, ''),
        ('raw', '/cam', {'/other': RAW}, ''),
        (
            'raw',
            '/cam/image_raw/compressed',
            {'/cam/image_raw/compressed': COMPRESSED},
            f'it carries {COMPRESSED}, not {RAW}: set transport to compressed and set image to /cam/image_raw',
        ),
        (
            'raw',
            '/jpegs',
            {'/jpegs': COMPRESSED},
            f'it carries {COMPRESSED}, not {RAW}: set transport to compressed and remap /jpegs/compressed to /jpegs',
        ),
        (
            'raw',
            '/cam',
            {'/cam/compressed': COMPRESSED},
            f'it has no publisher, but /cam/compressed carries {COMPRESSED}: set transport to compressed',
        ),
        (
            'compressed',
            '/cam/compressed',
            {'/cam': RAW},
            f'it has no publisher, but /cam carries {RAW}: set transport to raw',
        ),
        (
            'compressed',
            '/cam/compressed/compressed',
            {'/cam/compressed': COMPRESSED, '/cam': RAW},
            f'it has no publisher, but /cam/compressed carries {COMPRESSED}: set image to /cam',
        ),
        (
            'compressed',
            '/jpegs/compressed',
            {'/jpegs': COMPRESSED},
            f'it has no publisher, but /jpegs carries {COMPRESSED}: remap /jpegs/compressed to /jpegs',
        ),
        (
            'compressed',
            '/pictures',
            {'/pictures': RAW},
            f'it carries {RAW}, not {COMPRESSED}: set transport to raw and image to /pictures',
        ),
        ('raw', '/cam', {'/cam': 'a/msg/B'}, f'it carries a/msg/B, not {RAW}'),
    ],
)
def test_images_of_another_type_are_named_with_what_mends_it(transport, topic, published, reason):
    assert explain_types(topic, transport, lambda name: {published[name]} if name in published else set()) == reason


def test_bad_images_are_grave_when_there_are_no_good_ones():
    health = Health(0.0)
    health.arrive(0.5)
    health.drop('bad', error='image is empty')
    assert verdict(health, 1.0) == (ERROR, '1 of 1 images could not be used: image is empty')
    feed(health, 9, begin=1.0)
    health.arrive(1.5)
    health.drop('bad', error='image is empty')
    assert verdict(health, 2.0) == (WARN, '1 of 10 images could not be used: image is empty')


def test_images_are_said_to_be_large_where_they_are_or_may_be():
    health = Health(0.0)
    assert health.may_be_large
    health.arrive(0.1, 640 * 480)
    assert not health.may_be_large
    health.arrive(0.2, 1280 * 720)
    assert health.may_be_large


def test_a_failure_of_ours_is_an_error():
    health = Health(0.0)
    feed(health, 9)
    health.arrive(0.5)
    health.drop('error', error='ZeroDivisionError: division by zero')
    assert verdict(health, 1.0) == (ERROR, '1 of 10 images failed: ZeroDivisionError: division by zero')


def test_overload_is_a_warning_and_a_burst_is_not():
    health = Health(0.0)
    feed(health, 19)
    health.arrive(0.5)
    health.drop('newer')
    assert verdict(health, 1.0)[0] == OK
    feed(health, 15, begin=1.0)
    for _ in range(15):
        health.arrive(1.5)
        health.drop('newer')
    level, reason = verdict(health, 2.0)
    assert level == WARN
    assert '15 of 30 images dropped: they arrive faster than they can be processed' in reason


def test_what_the_middleware_loses_bad_masks_and_dark_images_are_warnings():
    health = Health(0.0)
    feed(health, 10)
    health.lost += 3
    assert verdict(health, 1.0) == (WARN, '3 images lost in transit: this machine or the network is overloaded')
    health.arrive(0.5, 640 * 480 * 3)
    health.lost += 3
    assert '3 images lost in transit: images above 0.5 MB need more shared memory' in verdict(health, 1.0)[1]
    feed(health, 10, begin=1.0)
    health.masks_bad += 2
    health.last_error = 'mask: it is empty'
    assert verdict(health, 2.0) == (WARN, '2 masks could not be used: mask: it is empty')
    feed(health, 10, begin=2.0)
    assert verdict(health, 3.0, masks='no mask can be read') == (WARN, 'no mask can be read')
    feed(health, 10, begin=3.0, keypoints=0)
    assert verdict(health, 4.0) == (WARN, 'no keypoints in any image: is it dark, covered or all masked?')


def test_what_the_first_inference_at_a_size_takes_is_no_overload():
    health = Health(0.0)
    health.begin_warm_up('the first inference at 640 x 480 pixels', 0.5)
    for number in range(4):
        health.arrive(0.2 * number)
    health.drop('newer', 3)
    assert verdict(health, 1.0) == (
        OK,
        'the first inference at 640 x 480 pixels is running, 3 images dropped meanwhile',
    )
    health.arrive(1.1)
    health.drop('newer')
    health.end_warm_up(1.734)
    health.serve(500, TIMES)
    assert verdict(health, 2.0) == (
        OK,
        'the first inference at 640 x 480 pixels took 1234 ms, 1 images dropped meanwhile',
    )
    for _ in range(5):
        health.arrive(2.5)
    health.drop('newer', 3)
    assert verdict(health, 3.0)[0] == WARN  # from now on it is


def test_a_camera_that_crops_each_image_differently_is_overloaded_like_another():
    health = Health(0.0)
    for second in range(3):
        for number in range(10):
            begun = second + number / 10
            health.arrive(begun)
            health.arrive(begun + 0.05)
            health.drop('newer')
            health.begin_warm_up(f'the first inference at {640 + number} x 480 pixels', begun)
            if number < 9:  # the last one is still running
                health.end_warm_up(begun + 0.09)
                health.serve(500, TIMES)
        level, reason = verdict(health, second + 0.95)
        assert ('10 of 20 images dropped: they arrive faster' in reason) == (level == WARN) == (second > 0)
        health.end_warm_up(second + 0.99)
        health.serve(500, TIMES)


def test_masks_that_are_lost_or_stamped_after_every_image_are_warnings():
    health = Health(0.0)
    feed(health, 10)
    health.masks_lost += 2
    level, reason = verdict(health, 1.0)
    assert level == WARN
    assert reason.startswith('2 masks lost in transit, older ones count instead: masks above 0.5 MB need')
    feed(health, 10, begin=1.0)
    for _ in range(10):
        health.pass_masks(12.5)
    level, reason = verdict(health, 2.0)
    assert level == WARN
    assert reason.startswith('no mask applies: each is stamped 12.50 s or more after the images')
    feed(health, 10, begin=2.0)
    health.pass_masks(0.01)  # the first mask of all, made from the image behind this one
    assert verdict(health, 3.0)[0] == OK
