"""Graph passes: each rewrites a graph into one that computes the same in less time.

All of them use only operators of the ONNX standard, so that the result runs on any CPU and with any execution
provider. docs/explanation/engine.md has the measurements.
"""
