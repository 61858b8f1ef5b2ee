"""What a trained model is worth: perplexity, needle retrieval, lm-eval tasks."""
