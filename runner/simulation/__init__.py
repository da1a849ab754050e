"""`spottmee-worker simulate`: an arrival pattern, KEDA's algorithm for ScaledJobs, and the pods that it starts."""
