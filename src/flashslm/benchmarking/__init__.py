"""Speed of whole models: latency of decoding, throughput at long contexts, the same shape in transformers."""
