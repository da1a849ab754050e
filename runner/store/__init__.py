"""What is kept: embeddings, photo statuses and match results."""
