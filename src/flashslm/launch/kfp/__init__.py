"""Runs on a cluster: the cluster pass, the KFP client, submission, following, recurring runs."""
