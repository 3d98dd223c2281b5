"""Commands as processes forked from one that has loaded every library already: a start takes milliseconds, and no seconds.

What differs from `python -m kappaspeech` is before and after it: the imports, what the environment changes in them, the seed of
`hash`, which all ranks share, and that the modules aren't taken down again. Tests of these start real processes.

`python -m tests.nursery MODULE …` loads these, reads a JSON request a line and answers each with a line: one with "ranks" starts
so many processes, and is answered with their ids; {"ended": pids}, of processes that have ended, with their exit codes, negative
for a signal.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from tests.conftest import clean_environment, free_port
from tests.patience import patience

PRELOADED = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "jiwer",
    "kappaspeech.commands",
    "kappaspeech.trained.opening",
    "kappaspeech.training.run",
    "soundfile",
    "soxr",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "whisper.normalizers",
)
# libraries read these as they are loaded
_READ_AT_IMPORT = ("ATEN_", "DS_", "HF_", "KMP_", "LANG", "LC_", "LD_", "MKL_", "OMP_", "ONEDNN_", "PYTHON", "TRANSFORMERS_")
_VARIABLES = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# for an answer, which takes a moment, or for the imports before the first one
_ANSWER_SECONDS = patience(90)


class Nursery:
    """The other end, in the test's process; threads may share it. A context manager."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._preloaded = preloaded

    def __enter__(self) -> Nursery:
        self._lock = threading.Lock()
        self._environment = clean_environment(**_VARIABLES)
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", *self._preloaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=self._environment,
            cwd=Path(__file__).parents[1],
            # Ctrl-C is for the tests, which end it
            start_new_session=True,
        )
        self._codes: dict[int, int] = {}
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait(patience(30))
        self._pipe(self._process.stdout).close()
        self._errors.close()

    def start(
        self,
        *words: object,
        ranks: int = 1,
        output: Path,
        errors: Path | None = None,
        input: Path | None = None,
        module: str = "kappaspeech",
        code: str | None = None,
        sabotage: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> list[int]:
        """Start `python -m module words`, or `python -c code words`, on so many ranks; their process ids.

        More than one are numbered as torchrun does it. All read `input`, write to `output`, and to `errors` where it's another
        file. `sabotage`: name and arguments of a function of tests/ranks/sabotage.py, called in each before.
        """
        request = {
            "ranks": ranks,
            "module": module,
            "code": code,
            "arguments": list(map(str, words)),
            "sabotage": list(sabotage),
            "environment": self.variables(environment or {}),
            "cwd": str(cwd or Path.cwd()),
            "streams": [str(input or os.devnull), str(output), str(errors or output)],
            "port": free_port(),
        }
        pids: list[int] = self._ask(request)
        # a number may have been another process's, long ended
        for pid in pids:
            self._codes.pop(pid, None)
        return pids

    def wait(self, pids: Sequence[int], *, timeout_seconds: float = patience(60)) -> list[int | None]:
        """The processes' exit codes; None of those that still run after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        waited_for = [pid for pid in pids if pid not in self._codes]
        with ExitStack() as opened:
            handles = {pid: os.pidfd_open(pid) for pid in waited_for}
            for handle in handles.values():
                opened.callback(os.close, handle)
            ended = [pid for pid in waited_for if _is_ready(handles[pid], deadline - time.monotonic())]
        self._codes |= zip(ended, self._ask({"ended": ended}), strict=True)
        return [self._codes.get(pid) for pid in pids]

    def run(
        self, *words: object, ranks: int = 1, timeout: float = patience(120), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Start as `start` does and wait, as `subprocess.run` would; the code is that of the first rank that failed."""
        with tempfile.TemporaryDirectory(prefix="nursery-") as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            pids = self.start(*words, ranks=ranks, output=output, errors=errors, **options)
            codes = self.wait(pids, timeout_seconds=timeout)
            if None in codes:
                os.killpg(pids[0], signal.SIGKILL)
                self.wait(pids)
            said = [path.read_text(encoding="utf-8", errors="replace") for path in (output, errors)]
        if None in codes:
            raise subprocess.TimeoutExpired([*map(str, words)], timeout, *said)
        return subprocess.CompletedProcess([*map(str, words)], next((code for code in codes if code), 0) or 0, *said)

    def variables(self, wanted: dict[str, str]) -> dict[str, str]:
        """The variables of a new process: as they are now, but for what libraries have read already."""
        own = {name: value for name, value in self._environment.items() if name.startswith(_READ_AT_IMPORT)}
        late = [name for name in wanted if name.startswith(_READ_AT_IMPORT) and own.get(name) != wanted[name]]
        assert not late, f"{', '.join(late)} would change nothing here, after the imports; start a real process"
        now = {name: value for name, value in clean_environment(**wanted).items() if not name.startswith(_READ_AT_IMPORT)}
        return {**now, **own, "TORCH_CPP_LOG_LEVEL": "ERROR"}

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            try:
                self._pipe(self._process.stdin).write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                raise self._death() from None
            answer, stdout = b"", self._pipe(self._process.stdout)
            while not answer.endswith(b"\n"):
                if not _is_ready(stdout, _ANSWER_SECONDS):
                    self._process.kill()
                    raise self._death()
                read = stdout.read(1 << 16)
                if not read:
                    raise self._death()
                answer += read
        return json.loads(answer)

    def _death(self) -> RuntimeError:
        code = self._process.wait(patience(10))
        self._errors.seek(0)
        return RuntimeError(f"the nursery has ended with {code}:\n{self._errors.read().decode(errors='replace')[-3000:]}")

    @staticmethod
    def _pipe(pipe: Any) -> Any:
        assert pipe is not None
        return pipe


def _is_ready(file: Any, seconds: float) -> bool:
    return bool(select.select([file], [], [], max(0.0, seconds))[0])


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked safely"
    gc.collect()
    # what is there already is looked at by no process that is forked
    gc.freeze()
    request = serve()
    if request is None:
        return
    code: object = 1
    try:
        become(request)
        run(request)
        code = 0
    except SystemExit as leave:
        code = leave.code
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        code = error
    end(code)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; in each process that is forked, return its own."""
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer: list[int] = []
        if "ended" in request:
            for pid in request["ended"]:
                answer.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                alive.discard(pid)
        else:
            for rank in range(request["ranks"]):
                pid = os.fork()
                if not pid:
                    return {**request, "rank": rank}
                # all ranks of a start are one process group, so that a test can kill them at one blow
                os.setpgid(pid, answer[0] if answer else pid)
                answer.append(pid)
            alive.update(answer)
        print(json.dumps(answer), flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return None


def become(request: dict[str, Any]) -> None:
    """Take the streams, the folder and the variables that the request names."""
    while os.getpgrp() == os.getpgid(os.getppid()):
        time.sleep(0.001)  # until this process has been put into its group
    written = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for stream, (path, flags) in enumerate(zip(request["streams"], (os.O_RDONLY, written, written), strict=True)):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    if request["ranks"] > 1:
        rank, ranks = str(request["rank"]), str(request["ranks"])
        os.environ.update({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])})
    os.environ.update(request["environment"])


def run(request: dict[str, Any]) -> None:
    if request["sabotage"]:
        from tests.ranks import sabotage

        name, *arguments = request["sabotage"]
        getattr(sabotage, name)(*arguments)
    sys.argv = ["-c", *request["arguments"]]
    if request["code"] is None:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(request["code"], "<string>", "exec"), vars(sys.modules["__main__"]))


def end(code: object) -> NoReturn:
    """End with what `sys.exit` was given, or with what was raised, as the interpreter does; only no module is taken down."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(code, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
