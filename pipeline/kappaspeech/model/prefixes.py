"""Prefixes of tensors' names in `SpeechLLM`, and so in a run's files."""

LLM_PREFIX, ADAPTOR_PREFIX = "llm.", "adaptor."
