"""Kubernetes from inside a pod: a small API client, TrainJobs."""
