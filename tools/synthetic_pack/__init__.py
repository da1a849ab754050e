"""Packs with the architectures of InsightFace's larger ones and random weights, for use without their files."""
