"""Baking: from InsightFace's original files to a model pack, verified to give InsightFace's answers."""
