"""The job scripts of launch/slurm without SLURM, of which stand-ins tell what it tells of a job; tests/slurm has a real one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.patience import patience

REPOSITORY = Path(__file__).parents[3]
SCRIPTS = sorted((REPOSITORY / "launch/slurm").glob("*.sbatch"))
# it has every package, and shows the way on which it was found
PYTHON = '#!/bin/bash\n[ "$1" = -c ] || { echo "$PYTHONPATH" >> "$SHOWN"; exit 3; }\n'
# it names no original of a script that was read from standard input
SCONTROL = "#!/bin/bash\nprintf 'JobId=7 JobName=sbatch\\n   Command=%s\\n' \"$COMMAND\"\n"
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'


def run_job(folder: Path, script: Path, *, command: str, submitted_from: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run SLURM's copy of a script, and return what it did and where it found the package."""
    for name, content in (("python", PYTHON), ("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    copy = folder / "slurm_script"
    copy.write_text(script.read_text())
    environment = clean_environment(
        PATH=f"{folder}:/usr/bin:/bin",
        PYTHON=str(folder / "python"),
        SHOWN=str(folder / "shown"),
        COMMAND=command,
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(submitted_from),
    )
    environment.pop("PYTHONPATH")
    words = ["bash", str(copy), "something.yaml"]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=patience(20), check=False)
    shown = folder / "shown"
    return done, shown.read_text().splitlines()[0] if shown.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("command", ["(null)", "", "{script} something.yaml"])
def test_a_job_finds_the_repository_by_its_script_or_by_where_it_was_submitted(tmp_path, script, command):
    named = command.format(script=script)
    submitted_from = tmp_path if command.startswith("{") else REPOSITORY
    done, package = run_job(tmp_path, script, command=named, submitted_from=submitted_from)
    assert package.split(":")[0] == str(REPOSITORY / "pipeline"), done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_job_that_finds_no_repository_says_so_and_ends(tmp_path, script):
    done, package = run_job(tmp_path, script, command="(null)", submitted_from=tmp_path)
    assert (done.returncode, package) == (2, "")
    assert done.stderr.startswith("error: SLURM doesn't say which repository")
    assert f"{tmp_path} isn't one. Submit from the repository." in done.stderr
    assert len(done.stderr.splitlines()) == 1
