"""Baking: from InsightFace's original files to a model pack that a run loads."""
