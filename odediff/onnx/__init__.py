"""Networks and samplers as ONNX files."""
