"""Text to token shards (`sources`, `tokenizer`, `shards`, `prepare`) and shards to batches (`loader`)."""
