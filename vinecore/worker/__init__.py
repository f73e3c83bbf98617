"""The worker's machine: events in, orders out. Never imports the manager's."""
