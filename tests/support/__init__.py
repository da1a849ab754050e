"""What several tests share: servers, samples, worlds. No test stands here."""
