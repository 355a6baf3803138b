"""Engines: where the tasks of a build run, on this machine or on many."""
