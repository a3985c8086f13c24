"""Named runs: functions that return a RunConfig."""
