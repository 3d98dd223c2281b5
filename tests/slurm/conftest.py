"""A SLURM of two nodes for the session, and the job scripts as a site of two processors would have them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm, why_not

REPOSITORY = Path(__file__).parents[2]
# the lines for a site, as somebody with processors alone and two nodes would change them; None: the line is removed
SITE = {
    "#SBATCH --gpus-per-node=": None,
    "#SBATCH --ntasks-per-node=": "1",
    "#SBATCH --cpus-per-task=": "1",
    "SCAN_OPTIONS=": "--nodes=2",
    "TRAIN_OPTIONS=": "--nodes=2",
    "SELECT=": "'--count 4'",
}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    problem = why_not()
    if problem is not None:
        pytest.skip(f"no SLURM here: {problem}")
    # a short path, for sockets, that every user may go through, as munge demands
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder), num_nodes=2) as running:
        yield running


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`launch/slurm` of a repository under a path with spaces, its lines for the site changed."""
    folder = tmp_path_factory.mktemp("shared by all nodes")
    (folder / "pipeline").symlink_to(REPOSITORY / "pipeline")
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    for path in (folder / "launch/slurm").glob("*.sbatch"):
        text = path.read_text(encoding="utf-8")
        for begin, value in SITE.items():
            text = re.sub(f"(?m)^{re.escape(begin)}.*\\n", "" if value is None else f"{begin}{value}\n", text)
        path.write_text(text, encoding="utf-8")
    return folder / "launch/slurm"
