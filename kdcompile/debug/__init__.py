"""Find where the variants of a network (PyTorch, ONNX, int8, engine) begin to differ."""
