"""Runs inside the user's process or the task's: imports floors 0-1 only and starts fast."""
