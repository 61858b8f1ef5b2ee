"""Schedules of this machine: records, cron expressions, the scheduler."""
