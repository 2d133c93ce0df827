"""Puts this folder on the path: tests of every folder may use `fake_server`."""
