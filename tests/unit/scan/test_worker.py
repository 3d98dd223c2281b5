"""The order in which a rank of a scan reads matrices, and the journal lines that it may reuse."""

from __future__ import annotations

import tempfile
import threading

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.errors import ScanError
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import StoredMatrix
from kappaspeech.scan.stage import scan
from kappaspeech.scan.worker import ScanOptions, Worker
from tests.rank_threads import RankThreads, together


def save(folder, content):
    save_file(content, folder / "model.safetensors")
    return str(folder)


def test_a_device_is_given_each_number_once_and_the_next_matrix_ahead(tmp_path, monkeypatch):
    """κ of 5e4 takes a pass for the Gram, eight for η and one for the small end."""
    left, right = (
        torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(seed)).double())[0] for seed in (1, 2)
    )
    ill = (left * torch.logspace(0, -4.7, 60).double()) @ right
    content = {f"w{number}.weight": ill * (number + 1) for number in range(3)}
    checkpoint = open_checkpoint(save(tmp_path, {name: weight.float() for name, weight in content.items()}))
    fetched: list[tuple[str, bool]] = []
    stored_block = StoredMatrix.stored_block

    def counted(matrix, start, stop):
        fetched.append((matrix._ref.name, threading.current_thread() is threading.main_thread()))
        return stored_block(matrix, start, stop)

    monkeypatch.setattr(StoredMatrix, "stored_block", counted)
    ranking = scan(checkpoint, device="cpu")
    assert fetched == [(f"w{number}.weight", False) for number in range(3)]
    assert {matrix.stats.rung for matrix in ranking.matrices} <= {"gram", "cholqr2"}


def test_a_matrix_that_cannot_be_read_ahead_is_named(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(save(tmp_path, {f"w{number}.weight": torch.randn(9, 9) for number in range(3)}))
    read = checkpoint.read

    def broken(name, start, stop):
        if name == "w1.weight":
            raise OSError("a bad sector")
        return read(name, start, stop)

    monkeypatch.setattr(checkpoint, "read", broken)
    with pytest.raises(ScanError, match=r"w1\.weight in .*a bad sector"):
        scan(checkpoint, device="cpu")


def test_a_journal_serves_all_gpus_alike_and_every_number_of_threads_apart(monkeypatch):
    assert ScanOptions(device="cuda:0").journal_key() == ScanOptions(device="cuda:1").journal_key()
    keys = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        keys += [ScanOptions().journal_key(), ScanOptions(is_static=True).journal_key(), ScanOptions(device="cuda").journal_key()]
    assert keys[0] == keys[1] != keys[3] == keys[4]
    assert keys[2] == keys[5]


def test_a_cluster_scans_one_checkpoint_after_another(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path, {f"w{number}.weight": torch.randn(5, 4) for number in range(3)}))
    cluster = SingleProcess()
    assert scan(checkpoint, cluster=cluster) == scan(checkpoint, cluster=cluster)


def test_a_temporary_folder_without_room_is_told_with_a_way_round_it(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(save(tmp_path, {"long.weight": torch.randn(40_000, 3)}))

    def fill(_file, _gram):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kappaspeech.scan.worker.np.save", fill)
    with RankThreads() as ranks:
        first, second = together(ranks.connect(2), lambda cluster: scan(checkpoint, cluster=cluster))
    told = next(error for error in (first, second) if isinstance(error, ScanError))
    assert "long.weight: " in str(told)
    assert str(told).endswith("36 bytes of what was computed of it (No space left on device). Name a folder that has by TMPDIR.")


def test_pieces_that_wait_for_each_other_lie_in_files_that_end_with_their_process(tmp_path, monkeypatch):
    """Files without names: a signal that ends a rank gives it no time to remove any."""
    checkpoint = open_checkpoint(save(tmp_path, {"long.weight": torch.randn(40_000, 3), "short.weight": torch.randn(3, 4)}))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    seen = []
    join_pieces = Worker._join_pieces

    def look(worker, mine):
        seen.append((len(mine), list((tmp_path / "scratch").iterdir())))
        join_pieces(worker, mine)

    monkeypatch.setattr(Worker, "_join_pieces", look)
    with RankThreads() as ranks:
        both = together(ranks.connect(2), lambda cluster: scan(checkpoint, cluster=cluster))
    assert both[0] == both[1] == scan(checkpoint)
    assert sum(count for count, _ in seen) == 3
    assert [found for _, found in seen] == [[], []]


@pytest.mark.parametrize("is_static", [False, True])
def test_ranks_that_their_hosts_memory_is_not_enough_for_leave_the_largest_matrices_to_the_others(
    tmp_path, monkeypatch, caplog, is_static
):
    """The long ones take 7 MB each, and are cut into pieces, which are joined; of 10 MB one rank alone has room for them."""
    content = {f"long{number}.weight": torch.randn(60_000, 30) for number in range(2)}
    content |= {f"short{number}.weight": torch.randn(30, 40) for number in range(6)}
    checkpoint = open_checkpoint(save(tmp_path, content))
    whole = scan(checkpoint)
    worked: list[tuple[int, str]] = []
    form_piece, measure = Worker._form_piece, Worker._measure

    def form(worker, ref, piece):
        worked.append((worker.cluster.rank, ref.name))
        return form_piece(worker, ref, piece)

    def finish(worker, ref, read, **options):
        worked.append((worker.cluster.rank, ref.name))
        measure(worker, ref, read, **options)

    monkeypatch.setattr(Worker, "_form_piece", form)
    monkeypatch.setattr(Worker, "_measure", finish)
    monkeypatch.setattr("kappaspeech.scan.stage.free_memory_bytes", lambda: 10_000_000)
    with RankThreads() as ranks:
        clusters = ranks.connect(3)
        both = together(clusters, lambda cluster: scan(checkpoint, cluster=cluster, is_static=is_static))
        again = together(clusters, lambda cluster: scan(checkpoint, cluster=cluster, is_static=is_static))
    assert both == again == [whole] * 3
    assert {rank for rank, name in worked if name.startswith("long")} == {0}
    assert {name for _, name in worked} == set(content)
    told = [record.getMessage() for record in caplog.records if "measure matrices" in record.getMessage()]
    assert len(told) == 2
    assert told[0].startswith("1 of 3 ranks on ")
    assert told[0].endswith("0.0 GB of memory are free there.")
