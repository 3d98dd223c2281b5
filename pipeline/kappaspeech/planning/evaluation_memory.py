"""Memory of an evaluation during training: a whole replica that decodes and scores text. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from kappaspeech.planning.memory import ZeroSettings
from kappaspeech.planning.sizes import FLOAT32_BYTES, LlmSizes, SpeechSizes

# in float32: two models' log-probabilities, the base's probabilities, a difference and a product
_KL_PASSES = 5
# as evaluation/forgetting.py has them, which a plan doesn't load; a test holds them to it
WINDOW_TOKENS, HELD_LOGITS_BYTES = 1_024, 1 << 30


@dataclass(frozen=True)
class TextLengths:
    """The lengths of an evaluation's texts: the longest one's tokens, a window at most, and the number of windows."""

    window_tokens: int
    num_windows: int


def count_evaluation(
    sizes: SpeechSizes,
    settings: ZeroSettings,
    *,
    num_clips: int,
    clip_seconds: float,
    new_tokens: int,
    num_beams: int = 1,
    texts: TextLengths | None = None,
) -> int:
    """Bytes of a whole replica that decodes a batch and scores text, as training makes one for each evaluation.

    Beside its weights it holds the base's tensors that were trained, to tell how far it has moved. With these come what was
    trained, while it is put in; or keys and values of all layers; or the logits of texts, whichever is most.
    """
    b, llm = settings.itemsize, sizes.llm
    positions = int(clip_seconds / sizes.seconds_per_audio_token) + new_tokens
    keys_and_values = count_keys_and_values(llm, num_rows=num_clips * num_beams, positions=positions, itemsize=b)
    trained = b * (llm.num_trained + sizes.num_adaptor_parameters)
    scoring = 0 if texts is None else count_scoring(sizes, settings, texts)
    weights = b * (llm.num_parameters + sizes.num_adaptor_parameters)
    return weights + trained + max(trained, keys_and_values, scoring)


def count_keys_and_values(llm: LlmSizes, *, num_rows: int, positions: int, itemsize: int) -> int:
    """Bytes of the keys and values of all layers while so many rows are decoded: with beams, a row for each of a clip's."""
    return num_rows * positions * itemsize * 2 * llm.key_width * llm.num_layers


def count_scoring(sizes: SpeechSizes, settings: ZeroSettings, texts: TextLengths) -> int:
    """Bytes of text's logits: those of the windows that are held, and of one window both models' log-probabilities in float32."""
    b, vocabulary = settings.itemsize, sizes.llm.vocabulary
    most_held = max(1, HELD_LOGITS_BYTES // (WINDOW_TOKENS * vocabulary * b))
    window = min(texts.window_tokens, WINDOW_TOKENS) * vocabulary
    return b * window * (min(texts.num_windows, most_held) + 1) + _KL_PASSES * FLOAT32_BYTES * window
