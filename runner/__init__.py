"""spottmee-worker: a one-shot runner for face-embedding jobs."""
