"""Faces: model packs, and the engine that detects and embeds."""
