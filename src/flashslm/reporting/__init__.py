"""Plots and the HTML report, drawn from a run's artifacts alone; no torch here."""
