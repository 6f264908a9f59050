"""What was lost on the way: never more than can be true, whatever the middleware says."""

from types import SimpleNamespace

import pytest

from edgepoint2_ros.node.losses import MOST_LOST, Losses, subscribe, to_lost


@pytest.mark.parametrize(
    ('change', 'lost'),
    [
        (0, 0),
        (1, 1),
        (48, 48),
        (2**31 - 1, 0),  # as Fast DDS says them: the fault alone,
        (2**64 - 2**31, 1),  # the fault and 1 lost, in 32 bits, as 64 bits without a sign
        (2**64 - 2**31 + 37, 38),
        (-(2**31) + 12, 13),
        (2**64 - 1, 1),  # the fault twice and 1 lost
        (10**9, 1),  # nonsense of another kind
        (10**30, 1),
    ],
)
def test_of_the_lost_messages_those_are_counted_that_can_be_true(change, lost):
    assert to_lost(change) == lost


def take(losses: Losses, *numbers) -> int:
    for number in numbers:
        losses.take(number)
    return losses.count


def test_gaps_in_the_numbers_are_lost_messages():
    losses = Losses()
    assert take(losses, 5, 6, 7) == 0  # what was before the first is none of ours
    assert take(losses, 10, 11, 13) == 3


def test_what_events_and_numbers_both_tell_of_counts_once():
    losses = Losses()
    losses.tell(4)  # before anything was heard
    assert take(losses, 5) == 4
    losses.tell(2)
    assert losses.count == 6  # at once, though nothing has come since
    assert take(losses, 8, 9) == 6
    assert take(losses, 12) == 8  # lost in the queue: no event
    losses.tell(1)
    assert take(losses, 14) == 9


def test_without_numbers_events_are_all_there_is():
    losses = Losses()
    for _ in range(3):
        losses.tell(2)
        losses.take(None)
    assert losses.count == 6


@pytest.mark.parametrize('number', [1, 7, None, MOST_LOST * 2, 2**64 - 1])
def test_another_publisher_begins_to_number_anew(number):
    losses = Losses()
    assert take(losses, 7, 9, number) == 1
    assert take(losses, *[] if number is None else [number + 1, number + 3]) == 1 + (number is not None)


def test_a_subscription_tells_what_the_middleware_lost():
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    events, counts = [], []
    node = SimpleNamespace(create_subscription=lambda *_, event_callbacks: events.append(event_callbacks))
    subscribe(node, None, 'mask', None, 10, Losses(), counts.append)
    for change in (3, 2):
        events[0].message_lost(SimpleNamespace(total_count_change=change))
    assert counts == [3, 5]


def test_a_publisher_that_has_numbered_further_has_lost_nothing():
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    events, receive, counts, received = [], [], [], []

    def create_subscription(kind, topic, callback, qos, event_callbacks):
        events.append(event_callbacks)
        receive.append(callback)
        return SimpleNamespace(get_publisher_count=lambda: 1)

    node = SimpleNamespace(create_subscription=create_subscription)
    subscribe(node, None, 'image', received.append, 10, Losses(), counts.append)
    if not hasattr(events[0], 'matched'):
        pytest.skip('Humble does not tell of a new publisher')
    for number in (1, 2, 4):
        receive[0](number, {'publication_sequence_number': number})
    events[0].matched(SimpleNamespace(current_count_change=-1))
    events[0].matched(SimpleNamespace(current_count_change=1))
    for number in (900, 901, 903):
        receive[0](number, {'publication_sequence_number': number})
    assert counts[-1] == 2
    assert len(received) == 6
