"""The bundle: its format, what a stranger's may contain, and the queries that it answers."""
