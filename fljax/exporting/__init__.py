"""Trained networks for elsewhere: parameters, programs of JAX, graphs of ONNX."""
