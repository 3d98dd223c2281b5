"""Stage 2: ZeRO-3 training of the adaptor and the selected tensors."""
