"""W&B's offline files, which `wandb sync` sends: records of W&B's own protocol in a log of LevelDB's form."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shown_runs import holds_secret, make_config, said, tell, tell_cut_and_resumed

wandb = pytest.importorskip("wandb", reason="W&B isn't installed (the extra wandb)")
from kappaspeech.loggers.wandb_logger import _has_login  # noqa: E402 - it needs none, but has no other test

_BLOCK_BYTES, _HEADER_BYTES = 32_768, 7


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch) -> None:
    """No settings, keys or services of whoever runs the tests."""
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after its own header of 7 bytes, pieces that never cross a block of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), _HEADER_BYTES, b""
    while place + _HEADER_BYTES <= len(content):
        if _BLOCK_BYTES - place % _BLOCK_BYTES < _HEADER_BYTES:
            place += _BLOCK_BYTES - place % _BLOCK_BYTES
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + _HEADER_BYTES : place + _HEADER_BYTES + length]
        place += _HEADER_BYTES + length
        # whole, or the last of several
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def read_runs(folder: Path) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Each start's run, and its points."""
    found = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        records = list(read_records(path))
        points = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        found.append((run, points))
    return found


def test_both_starts_of_a_run_have_one_id_and_no_step_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = make_config(tmp_path, "wandb")
    shown = tell_cut_and_resumed(config)
    runs = read_runs(Path(config.run_dir, "wandb"))
    assert len(runs) == 2
    assert len({run.run_id for run, _ in runs}) == 1
    assert {run.display_name for run, _ in runs} == {config.arm}
    points = [point for _, points in runs for point in points]
    found = [
        (name, point["step"], value)
        for point in points
        for name, value in point.items()
        if not name.startswith("_") and name != "step"
    ]
    assert len(found) == len(shown)
    assert {(name, step): value for name, step, value in found} == pytest.approx(shown)
    turns = [point["_step"] for point in points]
    assert turns == sorted(turns)
    assert holds_secret(Path(config.run_dir)) == []


def test_without_a_login_nobody_is_asked_for_one(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = make_config(tmp_path, "wandb")
    tell(config, first=0, last=1, resume_step=0)
    assert [points[0]["train/loss_nats"] for _, points in read_runs(Path(config.run_dir, "wandb"))] == [5.0]
    assert said(caplog) == [
        "training.loggers: wandb has no login (`wandb login`, WANDB_API_KEY). It writes into "
        f"{Path(config.run_dir, 'wandb')}; `wandb sync` sends it."
    ]


def test_a_login_is_found_where_wandb_keeps_it(tmp_path, monkeypatch):
    assert not _has_login(wandb.setup().settings)
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert _has_login(wandb.setup().settings)
    (tmp_path / "netrc").unlink()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert _has_login(wandb.setup().settings)


def test_a_server_out_of_reach_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    config = make_config(tmp_path, "wandb")
    tell(config, first=0, last=1, resume_step=0)
    (line,) = said(caplog)
    assert line.startswith("training.loggers: wandb shows no more of this run (CommError: ")
    assert line.endswith("The run goes on; its records have it all.")
