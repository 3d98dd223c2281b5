"""The tests mirror the package: its rooms as folders."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit"
PACKAGE = TESTS.parent / "pipeline/kappaspeech"


def modules() -> set[str]:
    """Every module by its path in the package, with dots: `scan.scales`."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return {".".join(path.parts) for path in paths if not path.name.startswith("__")}


def misplaced(path: Path, known: set[str]) -> list[str]:
    """The rooms in one of which a test (a path below tests/unit) belongs by its name, where it lies in none of them."""
    subject = path.stem.removeprefix("test_")
    rooms = {name.rpartition(".")[0] for name in known if name.rpartition(".")[2] == subject}
    # of a room as a whole
    rooms |= {subject} & {name.partition(".")[0] for name in known if "." in name}
    here = ".".join(path.parent.parts)
    return sorted(rooms) if rooms and here not in rooms else []


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
