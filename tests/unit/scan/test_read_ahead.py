"""One reader thread, one result ahead."""

from __future__ import annotations

import threading

import pytest

from kappaspeech.scan.read_ahead import read_ahead


def test_the_next_is_read_while_the_present_is_worked_on_and_no_more_than_that():
    begun: list[int] = []
    started = {number: threading.Event() for number in range(4)}

    def read(number: int) -> int:
        begun.append(number)
        started[number].set()
        return number * number

    for number, result in read_ahead(range(4), read):
        assert result() == number * number
        assert started[min(number + 1, 3)].wait(10)
        assert begun == list(range(min(number + 2, 4)))


def test_what_reading_raises_is_raised_where_its_result_is_asked_for():
    def read(number: int) -> int:
        if number == 1:
            raise OSError("the disk is gone")
        return number

    results = read_ahead(range(3), read)
    assert next(results)[1]() == 0
    with pytest.raises(OSError, match="disk is gone"):
        next(results)[1]()
    assert next(results)[1]() == 2


def test_nothing_is_read_of_nothing_and_no_thread_is_left():
    assert list(read_ahead([], int)) == []
    for _item, _result in read_ahead("123", int):
        break
    left = [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)
