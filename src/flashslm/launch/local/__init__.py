"""Runs on this machine: the launcher, the runner process, single steps."""
