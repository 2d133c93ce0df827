"""Programs that run inside a sandbox, on Python 3.10's standard library: their text is sent in, nothing is installed.

wire.py       values and messages
solution.py   the process that holds the solution: runs it on inputs, and says what came out
grader.py     the process that holds the tests, where they are a script; it asks the solution's process
"""
