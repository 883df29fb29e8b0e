"""Looking back: what recovery points hold, how they differ, and what was lost."""
