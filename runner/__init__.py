"""spottmee-worker: a one-shot runner for face-embedding jobs."""

__version__ = "0.1.0"
