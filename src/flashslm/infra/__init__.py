"""The platform: object store, tracking, model registry and the embedded stack. No torch and no kfp here."""
