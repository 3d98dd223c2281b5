"""The tests mirror the package: its rooms as folders, and no module that no test knows."""

from __future__ import annotations

from pathlib import Path

from tests.imports import imported

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit"
PACKAGE = TESTS.parent / "pipeline/kappaspeech"
# Tested through commands, runs or a module beside them alone. A module that gets a test of its own leaves this list.
THROUGH_OTHERS = {
    "colours",
    "commands.best_step",
    "commands.compare",
    "commands.config",
    "commands.demo",
    "commands.doctor",
    "commands.evaluate",
    "commands.export",
    "commands.pack",
    "commands.plan",
    "commands.push",
    "commands.show",
    "commands.status",
    "commands.transcribe",
    "comparison.page",
    "comparison.report",
    "comparison.trial_runner",
    "config.reading",
    "demo.ctranslate2",
    "demo.models",
    "diagnosis.examination",
    "model.hub_cache",
    "model.prefixes",
    "planning.report",
    "ranks.mpi_cluster",
    "scan.cholesky",
    "scan.known_matrices",
    "scan.packed",
    "scan.ranking_file",
    "scan.run_file",
    "speech.buckets",
    "speech.dataset_rows",
    "speech.manifests",
    "speech.prefetcher",
    "speech.published",
    "speech.saved_datasets",
    "tensor_files.gguf_file",
    "tensor_files.gguf_header",
    "tensor_files.torch_file",
    "training.frozen_check",
    "training.partitioned",
    "training.replica_or_zero3",
    "zero3.residency",
    "zero3.whole_tensors",
}


def modules() -> set[str]:
    """Every module by its path in the package, with dots: `scan.scales`."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return {".".join(path.parts) for path in paths if not path.name.startswith("__")}


def subjects(path: Path) -> set[str]:
    """The modules of the package that a test imports, anywhere in it."""
    return {name.removeprefix("kappaspeech.") for name in imported(path) if name.startswith("kappaspeech.")}


def misplaced(path: Path, known: set[str]) -> list[str]:
    """The rooms in one of which a test (a path below tests/unit) belongs by its name, where it lies in none of them."""
    subject = path.stem.removeprefix("test_")
    rooms = {name.rpartition(".")[0] for name in known if name.rpartition(".")[2] == subject}
    # of a room as a whole
    rooms |= {subject} & {name.partition(".")[0] for name in known if "." in name}
    here = ".".join(path.parent.parts)
    return sorted(rooms) if rooms and here not in rooms else []


def test_every_module_is_imported_by_a_test_or_named_as_tested_through_others():
    found = set().union(*(subjects(path) for path in TESTS.rglob("*.py")))
    untested = modules() - found
    assert untested - THROUGH_OTHERS == set(), "write a test that imports these"
    assert THROUGH_OTHERS - untested == set(), "these have a test, or are gone: take them from the list"


def test_every_folder_of_unit_tests_is_a_room_and_a_package():
    folders = [path for path in UNIT.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert len(folders) > 10
    for folder in folders:
        assert (PACKAGE / folder.relative_to(UNIT) / "__init__.py").exists(), f"{folder} is no room"
        # else two tests of the same name would be one module
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"


def test_a_test_with_a_modules_name_lies_in_that_modules_room():
    known, paths = modules(), [path.relative_to(UNIT) for path in UNIT.rglob("test_*.py")]
    assert len(paths) > 100
    assert {str(path): rooms for path in paths if (rooms := misplaced(path, known))} == {}


def test_a_misplaced_test_is_found():
    known = {"scan.scales", "scan.show", "commands.show", "errors"}
    assert misplaced(Path("model/test_scales.py"), known) == ["scan"]
    assert misplaced(Path("test_show.py"), known) == ["commands", "scan"]
    assert misplaced(Path("scan/test_errors.py"), known) == [""]
    assert misplaced(Path("test_scan.py"), known) == ["scan"]
    for sound in (
        "scan/test_scales.py",
        "commands/test_show.py",
        "test_errors.py",
        "scan/test_scan.py",
        "model/test_anything.py",
    ):
        assert misplaced(Path(sound), known) == []


def test_imports_are_found_wherever_they_stand(tmp_path):
    path = tmp_path / "test_x.py"
    path.write_text("import kappaspeech.blas\ndef f():\n    from kappaspeech.scan import scales\n    from json import dumps\n")
    assert subjects(path) == {"blas", "scan", "scan.scales"}
