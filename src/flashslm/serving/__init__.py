"""An OpenAI-compatible endpoint over the project's own decode engine, for one machine."""
