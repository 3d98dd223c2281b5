"""Faults that a test puts into a rank before it starts. Each function takes the arguments that the test gave, as text."""

from __future__ import annotations
