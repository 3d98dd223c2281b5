"""What `benchmarks/gpu.py` measures: a module a section, each with its cases, which run in processes of their own."""
