"""The configuration of an export, as transformers writes and reads configurations."""

from __future__ import annotations

from kappaspeech.portable.configuration_kappaspeech import KappaSpeechConfig


def test_it_is_read_as_it_was_written(tmp_path):
    config = KappaSpeechConfig(
        text_config={"model_type": "llama", "hidden_size": 32},
        encoder={"num_mels": 80},
        adaptor={"width": 16},
        prompt={"prefix_ids": [1], "suffix_ids": []},
        trained_in="bfloat16",
    )
    config.save_pretrained(tmp_path)
    again = KappaSpeechConfig.from_pretrained(tmp_path)
    assert again.to_dict() == {**config.to_dict(), "transformers_version": again.to_dict()["transformers_version"]}
    assert again.text_config.hidden_size == 32
    assert again.get_text_config().model_type == "llama"
