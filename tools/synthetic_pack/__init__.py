"""Packs with the architectures of InsightFace's larger ones and random weights, where their files are not at hand."""
