"""`kappaspeech config`: the keys of a run's YAML, for people and for editors."""

from __future__ import annotations

from typing import Annotated

import typer


def config(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema, by which editors complete and check the YAML.")
    ] = False,
) -> None:
    """List every key of a run's YAML with its type, default and meaning."""
    import json
    import sys

    from kappaspeech.config.reference import list_sections
    from kappaspeech.config.run_config import RunConfig
    from kappaspeech.escaping import for_json

    if schema:
        print(for_json(json.dumps(RunConfig.model_json_schema(), indent=1, ensure_ascii=False), sys.stdout.encoding))
        return
    for section in list_sections(RunConfig):
        print(f"{section.path or 'top level'}: {section.description}")
        for key in section.keys:
            print(f"  {key.name} ({key.kind}; {'required' if key.default is None else f'default {key.default}'})")
            print(f"      {key.description}")
        print()
