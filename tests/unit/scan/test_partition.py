"""The number of processes that memory is enough for."""

from __future__ import annotations

import math

from kappaspeech.scan.partition import assign, fitting_processes, matrix_bytes, memory_limits

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


def test_as_many_ranks_of_a_host_take_any_matrix_as_its_memory_is_enough_for_and_the_others_share_the_rest():
    large = matrix_bytes(LARGE)
    hosts = ["h1"] * 4 + ["h2"] * 2
    free = [2 * large + 600] * 4 + [2 * large] * 2
    # what one rank of a host measured counts for all of it
    free[3] -= 100
    limits = memory_limits([LARGE] * 9, hosts=hosts, free_bytes=free)
    assert limits == [math.inf, math.inf, 250, 250, math.inf, math.inf]
    # a matrix that fits nowhere is tried by one rank nevertheless, and no other one has any
    assert memory_limits([LARGE] * 9, hosts=["h"] * 3, free_bytes=[1000] * 3) == [math.inf, 0, 0]
    assert memory_limits([SMALL] * 9, hosts=["h"] * 3, free_bytes=[large] * 3) == [math.inf] * 3


def test_matrices_are_assigned_to_ranks_alone_that_take_them():
    costs = [5.0, 4.0, 3.0, 2.0, 1.0]
    shares = assign(costs, 3, takes=lambda index, rank: rank == 1 or index >= 3)
    assert sorted(index for share in shares for index in share) == [0, 1, 2, 3, 4]
    assert shares[1] == [0, 1, 2]
    assert shares[0] == [3]
    assert assign(costs, 3) == [[0], [1, 4], [2, 3]]
