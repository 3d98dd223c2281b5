"""The configuration's part on elastic weight consolidation, which holds each weight by what it means for text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kappaspeech.config.section import Count, Positive, StrictSection


class EwcConfig(StrictSection):
    """Elastic weight consolidation (Kirkpatrick 2017): weights are pulled back to where they began, as text needs them."""

    texts: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="Texts by which the Fisher information is measured: language → a file of one text a line, or a folder of "
        ".txt files. Never those of data.text."
    )
    weight: Positive = Field(
        default=1.0,
        description="Weight of ½ Σ F (θ − θ₀)², added to the transcripts' loss. It is KL(base ‖ trained) a token of the texts, "
        "in nats, to second order and by the Fisher's diagonal.",
    )
    num_pieces: Count = Field(
        default=256,
        description="Most pieces of text of a language for the Fisher, spread evenly. Each costs one pass of all ranks, at every "
        "start.",
    )
    max_tokens: Annotated[int, Field(ge=2)] = Field(default=128, description="Most tokens of a piece; longer texts are cut.")
