"""Tensors in, tensors out: the frozen encoder, the adaptor and the LLM. Nothing here knows a rank."""
