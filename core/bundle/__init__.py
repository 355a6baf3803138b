"""The bundle: its format, what a stranger's may hold, and what is asked of it."""
