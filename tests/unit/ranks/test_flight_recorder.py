"""PyTorch's Flight Recorder: where it writes, and who has the last word on it."""

from __future__ import annotations

import pickle

import pytest

from kappaspeech.ranks.flight_recorder import dump, recording, tell_reader


def test_collectives_are_recorded_and_nccls_timeouts_written_into_the_run_folder(tmp_path):
    environment: dict[str, str] = {}
    with recording(tmp_path / "run/flight_recorder", environment):
        assert environment == {
            "TORCH_FR_BUFFER_SIZE": "2000",
            "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
            "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/run/flight_recorder/nccl_timeout_rank_",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{tmp_path}/run/flight_recorder/nccl_timeout_rank_",
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        }


def test_a_second_training_in_one_process_records_into_its_own_folder(tmp_path):
    environment = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    with pytest.raises(KeyError), recording(tmp_path / "first", environment):
        raise KeyError
    assert environment == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    with recording(tmp_path / "second", environment):
        assert environment["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/second/nccl_timeout_rank_"


@pytest.mark.parametrize(
    "chosen",
    [
        {"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"},
        {"TORCH_FR_BUFFER_SIZE": "9", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"},
        {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/elsewhere/rank_"},
        {"TORCH_FR_DUMP_TEMP_FILE": "/elsewhere/rank_"},
    ],
)
def test_what_the_user_chose_stays_under_its_old_name_too(tmp_path, chosen):
    environment = dict(chosen)
    with recording(tmp_path, environment):
        assert environment.items() >= chosen.items()
        for names in (
            {"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"},
            {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"},
        ):
            # the other name of the same would win over it
            assert not names & chosen.keys() or names & environment.keys() == names & chosen.keys()
    assert environment == chosen


def test_a_rank_writes_what_pytorchs_reader_takes(tmp_path):
    assert dump(tmp_path / "new", 3) == ["gloo"]
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "gloo_rank_3"
    assert {"entries", "version", "pg_config"} <= pickle.loads(path.read_bytes()).keys()


def test_a_place_that_takes_nothing_is_told_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert dump(tmp_path / "file", 0) == []
    assert "The collectives of rank 0 (gloo) can't be written: " in caplog.text


def test_the_line_names_the_folder_and_a_command_a_backend(tmp_path):
    assert tell_reader(tmp_path, ["gloo", "nccl"]) == (
        f"each rank's last collectives are in {tmp_path}: `python -m pickle {tmp_path}/gloo_rank_*` and "
        f"`torchfrtrace {tmp_path} -p nccl_rank_ --allow-incomplete-ranks`"
    )
