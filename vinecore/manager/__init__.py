"""The manager's machine: events in, orders out. Never imports the worker's."""
