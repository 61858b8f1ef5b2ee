"""The depth-width scaling law, the small family it is fitted on, and the choice under a latency budget."""
