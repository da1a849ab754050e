"""Faces: the model pack that a run loads, and the engine that detects and embeds."""
