"""Print the versions of everything that this environment's kappaspeech needs to run, as a pip constraints file.

python launch/images/lock.py > launch/images/constraints.txt, in an environment in which all tests have passed.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

# what images hold beside the bare package: generated speech, shards behind http and s3, rankings as Parquet
EXTRAS = ("demo", "http", "s3", "parquet")
# torch's CUDA build asks for one version of it, its CPU build for none
_LEFT_OPEN = ("triton",)


def find_versions(package: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Name → version of all that `package` with `extras` needs, itself not included; what isn't installed is left out."""
    found: dict[str, str] = {}
    waiting = [(package, extras)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for text in requires(name) or ():
            requirement = Requirement(text)
            if not any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if key in _LEFT_OPEN:
                continue
            try:
                # a CPU build of torch, "2.13.0+cpu", is tested; the image takes the same version's CUDA build
                found[key] = version(requirement.name).partition("+")[0]
            except PackageNotFoundError:
                continue
            waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    print(f"# python launch/images/lock.py, Python {sys.version_info[0]}.{sys.version_info[1]}; images install exactly these")
    for name, number in find_versions("kappaspeech", EXTRAS).items():
        print(f"{name}=={number}")
