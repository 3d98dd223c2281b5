"""What tensors' names begin with in `SpeechLLM`, and so in a run's files; the encoder's stand beside them in frozen.json."""

LLM_PREFIX, ADAPTOR_PREFIX, ENCODER_PREFIX = "llm.", "adaptor.", "whisper."
