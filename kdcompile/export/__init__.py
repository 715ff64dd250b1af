"""Export: PyTorch networks as checked ONNX files."""
