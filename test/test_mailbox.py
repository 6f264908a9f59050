"""The mailbox between the middleware's thread and the worker."""

import threading

from edgepoint2_ros.node.mailbox import Mailbox


def test_with_one_slot_the_newest_wins():
    mailbox = Mailbox(1)
    for item in range(5):
        mailbox.put(item)
    assert mailbox.get() == 4
    assert (mailbox.received, mailbox.dropped) == (5, 4)


def test_a_longer_queue_keeps_the_order_and_drops_the_oldest_when_full():
    mailbox = Mailbox(3)
    for item in range(5):
        mailbox.put(item)
    assert [mailbox.get() for _ in range(3)] == [2, 3, 4]
    assert (mailbox.received, mailbox.dropped) == (5, 2)


def test_closing_ends_a_wait_and_counts_what_was_left():
    mailbox = Mailbox(3)
    got = []
    reader = threading.Thread(target=lambda: got.append(mailbox.get()))
    reader.start()
    mailbox.close()
    reader.join(5)
    assert got == [None]

    mailbox = Mailbox(3)
    mailbox.put('a')
    mailbox.put('b')
    mailbox.close()
    assert mailbox.get() is None
    assert (mailbox.received, mailbox.dropped) == (2, 2)


def test_counters_add_up_between_threads():
    mailbox = Mailbox(2)
    taken = []

    def read():
        while (item := mailbox.get()) is not None:
            taken.append(item)

    reader = threading.Thread(target=read)
    reader.start()
    for item in range(1, 20_001):
        mailbox.put(item)
    mailbox.close()
    reader.join(5)
    assert taken == sorted(taken)
    assert mailbox.received == 20_000 == len(taken) + mailbox.dropped
