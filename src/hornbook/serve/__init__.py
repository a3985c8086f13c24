"""Models and runs, spoken with over HTTP."""
