"""Experiments: named models trained under the same settings, compared seed by seed with their intervals."""
