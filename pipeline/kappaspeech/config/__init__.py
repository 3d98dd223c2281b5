"""The configuration of a run: its YAML as strict models, read within limits, and the DeepSpeed JSON beside it."""
