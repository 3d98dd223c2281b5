"""The arithmetic in which a trained model is used."""

from __future__ import annotations

import torch

from kappaspeech.model.family import Attentions
from kappaspeech.trained.arithmetic import UseArithmetic, keep_attention

NATIVE = {"float32": 44.0, "bfloat16": 92.0}
EMULATING = {"float32": 53.0, "bfloat16": 0.5}


def test_a_trained_model_is_used_in_no_emulated_dtype():
    fast, slow = UseArithmetic.of(NATIVE), UseArithmetic.of(EMULATING)
    assert [fast.dtype(name) for name in ("bfloat16", "float32")] == [torch.bfloat16, torch.float32]
    assert [slow.dtype(name) for name in ("bfloat16", "float32")] == [torch.float32, torch.float32]
    assert fast.attention("bfloat16") == "kappaspeech_matmul"
    assert slow.attention("bfloat16") == fast.attention("float32") == "sdpa"


def test_a_trained_model_is_used_with_the_attention_that_its_run_kept():
    fast, takes = UseArithmetic.of(NATIVE), Attentions("Gemma", sdpa=False)
    assert fast.attention("bfloat16", kept="eager") == "eager"
    assert fast.attention("bfloat16", kept="sdpa") == "sdpa"
    assert fast.attention("bfloat16", takes=takes) == "eager"
    # trained on a GPU, used without one
    assert fast.attention("float32", kept="flash_attention_2") == "sdpa"
    assert [keep_attention("auto", recorded) for recorded in ("eager", "sdpa", None)] == ["eager", "auto", "auto"]
    assert keep_attention("sdpa", "sdpa") == "sdpa"
