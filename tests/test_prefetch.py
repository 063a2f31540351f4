"""Drawing ahead: how far, in which order, and how it ends."""

import gc
import threading
import time

import pytest

from ediffi_jax.training.prefetch import Ahead


class Source:
    """Counts what is drawn from it; may fail at an item."""

    def __init__(self, number, fails_at=None):
        self.number, self.fails_at = number, fails_at
        self.drawn, self.closed = 0, threading.Event()
        self.thread = None

    def items(self):
        self.thread = threading.current_thread()
        try:
            for item in range(self.number):
                if item == self.fails_at:
                    raise ValueError(f"item {item}")
                self.drawn += 1
                yield item
        finally:
            self.closed.set()


def wait_for(holds):
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert holds()


def test_items_come_in_their_order_and_end():
    source = Source(20)
    assert list(Ahead(source.items())) == list(range(20))
    assert source.closed.is_set()


def test_the_next_are_drawn_while_one_is_used_and_no_more_than_two():
    source = Source(100)
    ahead = Ahead(source.items())
    for item in range(5):
        assert next(ahead) == item
        wait_for(lambda item=item: source.drawn == item + 3)  # one waits, one is in the thread's hand
        time.sleep(0.02)
        assert source.drawn == item + 3
    assert source.thread is not threading.current_thread()
    ahead.close()


def test_what_drawing_raises_is_raised_at_its_turn_and_again():
    source = Source(9, fails_at=3)
    ahead = Ahead(source.items())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="item 3"):
            next(ahead)


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_thread_ends_and_closes_what_it_draws_from(end):
    source = Source(100)
    ahead = Ahead(source.items())
    next(ahead)
    wait_for(lambda: source.drawn == 3)
    if end == "closed":
        ahead.close()
        with pytest.raises(StopIteration):
            next(ahead)
    else:
        del ahead
        gc.collect()
    wait_for(source.closed.is_set)
    source.thread.join(20)
    assert not source.thread.is_alive() and source.drawn <= 4
