"""The hosts that a run may use, in DeepSpeed's own format: one `name slots=N` a line, `#` opens a comment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.errors import ConfigError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=(?P<slots>[1-9]\d*)")


@dataclass(frozen=True)
class Host:
    """A name that ssh knows, and the number of ranks that it takes."""

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts in a hostfile, in its order: the first one's first process is rank 0. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The hostfile {path} can't be read: {error}.") from error
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        found = _LINE.fullmatch(content)
        if found is None:
            raise ConfigError(f"{path}, line {number}: {line!r} isn't a host; write 'name slots=N', N its number of ranks.")
        if found["name"] in hosts:
            raise ConfigError(f"{path}, line {number}: {found['name']} is listed twice; list it once, with all its slots.")
        hosts[found["name"]] = Host(found["name"], int(found["slots"]))
    if not hosts:
        raise ConfigError(f"The hostfile {path} names no host; write 'name slots=N' for each.")
    return tuple(hosts.values())
