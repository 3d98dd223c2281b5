"""The number of processes that memory is enough for."""

from __future__ import annotations

from kappaspeech.scan.partition import fitting_processes

LARGE, SMALL = (8192, 28672), (64, 64)
# 20 bytes for each number of the Gram, a matrix of 256 MiB at most that is kept, and the process itself
OF_A_LARGE_ONE = 20 * 8192**2 + (356 << 20)


def test_as_many_processes_as_can_measure_the_largest_matrices_at_once():
    for number in (1, 3, 10):
        assert fitting_processes([LARGE] * 80, most=64, free_bytes=number * OF_A_LARGE_ONE) == number
    assert fitting_processes([LARGE] * 80, most=64, free_bytes=64 * OF_A_LARGE_ONE) == 64
    # one that doesn't fit is tried nevertheless
    assert fitting_processes([LARGE] * 80, most=64, free_bytes=0) == 1


def test_one_large_matrix_keeps_no_process_from_the_small_ones():
    free = OF_A_LARGE_ONE + 63 * (101 << 20)
    assert fitting_processes([LARGE, *[SMALL] * 500], most=64, free_bytes=free) == 64
    assert fitting_processes([LARGE], most=64, free_bytes=OF_A_LARGE_ONE) == 64
    assert fitting_processes([], most=8, free_bytes=0) == 8
