"""Engines that compute vectors from pixels: PyTorch, OpenVINO and ONNX Runtime."""
