"""Files of tensors: safetensors read and written, PyTorch and GGUF files read, and which of a folder are its weights."""
