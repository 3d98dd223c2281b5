"""Files of tensors: safetensors read and written, PyTorch and GGUF files read, and a folder's files of weights."""
