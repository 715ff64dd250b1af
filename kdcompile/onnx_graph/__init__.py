"""ONNX graphs: sessions, shapes, multiply-adds, half precision, opsets."""
