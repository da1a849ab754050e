"""Storage: embeddings and photo statuses in PostgreSQL, results of comparisons in Redis."""
