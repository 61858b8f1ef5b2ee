"""Export: a Hugging Face directory, a TensorRT-LLM AutoDeploy bundle, their verification, parity and import."""
