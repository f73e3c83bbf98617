"""What users hold: the manager facade, tasks, files, function calls, and the engine under them."""
