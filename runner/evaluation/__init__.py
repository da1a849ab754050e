"""How well a model pack tells people apart: what `spottmee-worker evaluate` measures. No run imports this."""
