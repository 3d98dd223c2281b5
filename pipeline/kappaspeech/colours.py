"""The colours of all drawings: of the comparison's page and of a ranking's picture."""

from __future__ import annotations

# After Okabe & Ito 2008, darkened to stand on white; the second of each pair stands on black.
PALETTE = (
    ("#0072b2", "#5cb8f0"),
    ("#d55e00", "#ff8f4a"),
    ("#008f68", "#35c99f"),
    ("#a8478a", "#e58fc6"),
    ("#8a6d00", "#e0bd3c"),
    ("#5a5a5a", "#b8b8b8"),
    ("#3b6fd6", "#9db8ff"),
)
INK, FAINT, GRID, PAPER = "#1c1d1f", "#5f656b", "#dfe2e5", "#fdfdfc"
# from little to much, for cells
SEQUENCE = ("#e3eef6", "#5cb8f0", "#0072b2", "#06263d")
