"""The mailbox between the middleware's thread and the worker."""

import threading

from edgepoint2_ros.node.mailbox import Mailbox


def take(mailbox: Mailbox, count: int) -> list:
    return [mailbox.get() for _ in range(count)]


def test_with_one_slot_the_newest_wins():
    mailbox = Mailbox()
    assert [mailbox.put(item) for item in range(5)] == [0, 1, 1, 1, 1]
    assert mailbox.get() == (0, 4)
    assert mailbox.is_empty


def test_a_longer_queue_keeps_the_order_and_drops_the_oldest_when_full():
    mailbox = Mailbox(capacity=3)
    assert sum(mailbox.put(item) for item in range(5)) == 2
    assert take(mailbox, 3) == [(0, 2), (0, 3), (0, 4)]


def test_cameras_are_served_in_turn_however_much_one_of_them_sends():
    mailbox = Mailbox(cameras=3, capacity=100)
    for item in range(50):
        mailbox.put(item, camera=0)
    mailbox.put('a', camera=2)
    mailbox.put('b', camera=2)
    mailbox.put('c', camera=1)
    assert take(mailbox, 6) == [(0, 0), (2, 'a'), (1, 'c'), (0, 1), (2, 'b'), (0, 2)]


def test_a_fast_camera_does_not_starve_a_slow_one():
    mailbox = Mailbox(cameras=2)
    served = []
    for step in range(100):
        mailbox.put(step, camera=0)
        if step % 10 == 0:
            mailbox.put(step, camera=1)
        served.append(mailbox.get())
    slow = [(place, item) for place, (camera, item) in enumerate(served) if camera == 1]
    assert [item for _, item in slow] == list(range(0, 100, 10))
    assert all(place - item <= 1 for place, item in slow)  # it waits for one image of the other at most


def test_a_queue_that_is_shortened_drops_its_oldest():
    mailbox = Mailbox(cameras=2, capacity=10)
    for item in range(5):
        mailbox.put(item)
    mailbox.put('x', camera=1)
    assert mailbox.resize(2) == [3, 0]
    assert mailbox.put(5) == 1
    assert take(mailbox, 3) == [(0, 4), (1, 'x'), (0, 5)]


def test_closing_ends_a_wait_and_says_what_was_lost():
    mailbox = Mailbox()
    got = []
    reader = threading.Thread(target=lambda: got.append(mailbox.get()))
    reader.start()
    assert mailbox.close() == [0]
    reader.join(5)
    assert got == [None]
    assert mailbox.put('late') == 1

    mailbox = Mailbox(cameras=2, capacity=3)
    mailbox.put('a', camera=1)
    mailbox.put('b', camera=1)
    assert mailbox.close() == [0, 2]
    assert mailbox.get() is None


def test_nothing_is_lost_uncounted_between_threads():
    mailbox = Mailbox(cameras=2, capacity=2)
    taken = ([], [])

    def read():
        while (got := mailbox.get()) is not None:
            taken[got[0]].append(got[1])

    reader = threading.Thread(target=read)
    reader.start()
    dropped = [0, 0]
    for item in range(20_000):
        dropped[item % 2] += mailbox.put(item, camera=item % 2)
    left = mailbox.close()
    reader.join(5)
    for camera in (0, 1):
        assert taken[camera] == sorted(taken[camera])
        assert len(taken[camera]) + dropped[camera] + left[camera] == 10_000
