"""Pictures and pages drawn from run folders alone."""
