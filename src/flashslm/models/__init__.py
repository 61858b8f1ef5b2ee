"""The model family: an architecture (operator sequence and sizes), the hybrid language model, one file per operator."""
