"""The speech LLM as transformers knows models. An export holds these modules, and those that they import, beside the weights."""
