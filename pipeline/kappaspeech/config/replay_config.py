"""The configuration's part on text that training repeats beside speech, so that the LLM forgets less."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kappaspeech.config.section import Count, NotNegative, Positive, StrictSection

# pieces of each language by which a budget is kept
MOST_MEASURED = 64


class ReplayConfig(StrictSection):
    """Text in every step beside its speech: the LLM keeps learning it, or is held to its base's predictions of it."""

    texts: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="Texts to replay: language → a file of one text a line, or a folder of .txt files. Never those of data.text."
    )
    texts_per_step: Count = Field(
        default=4, description="Pieces of text in a step, over all ranks. The languages take turns, one piece each."
    )
    max_tokens: Annotated[int, Field(ge=2)] = Field(
        default=128, description="Most tokens of a piece; longer texts are cut. A step costs least if clips are about as long."
    )
    weight: NotNegative = Field(
        default=1.0, description="Weight of the texts' own loss, −log p a token, added to the transcripts'. 0: none."
    )
    anchor_weight: NotNegative = Field(
        default=0.0,
        description="Weight of KL(base ‖ trained) a token of the texts, over the whole vocabulary, added to the transcripts' "
        "loss: it holds the LLM to what its base says. 0: none.",
    )
    forgetting_budget_nats: Positive | None = Field(
        default=None,
        description="Distance from the base, KL(base ‖ trained) a token of data.text, at which the run shall end. It is measured "
        "now and then, and anchor_weight, the least weight, is raised as far as that asks. If no weight keeps it, the LLM is "
        "drawn back towards its base. null: anchor_weight stays.",
    )
    measure_every_steps: Count | None = Field(
        default=None, description="How often that distance is measured. null: each thirty-second part of the run."
    )

    @model_validator(mode="after")
    def _weigh_something(self) -> ReplayConfig:
        if not self.weight and not self.anchor_weight:
            raise ValueError(
                "replay.weight and replay.anchor_weight are both 0, so the texts would change nothing: set one, or remove replay"
            )
        if self.forgetting_budget_nats is not None and not self.anchor_weight:
            raise ValueError(
                "replay.forgetting_budget_nats raises replay.anchor_weight, which is 0: set that to the least weight, such as 0.1"
            )
        return self
