"""Graph passes: each takes a graph and leaves one that computes the same in less time.

The operators of the ONNX standard are enough for all of them, so that the result runs on any CPU and under any
execution provider. docs/explanation/engine.md has the measurements.
"""
