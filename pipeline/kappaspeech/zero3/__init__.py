"""The one room that knows DeepSpeed: a model partitioned under ZeRO-3, its steps, and its state to files and back."""
