"""The measurements of `benchmarks/gpu.py`: a module a section, each with its cases, which run in processes of their own."""
