"""Baking: from InsightFace's original files to a model pack, proven to give InsightFace's answers."""
