"""Judges put to the test: run on files, attacked, compared with labels, tried before a run and watched during it.

runner       judges rows of a file, resumable           rows         the rows
audit        how often a judge passes what deserves     attacks      the replies that it is tried with
nothing
calibrate    a judge against labels                     agreement    the numbers of that
canary       completions of known worth, for a run      trial        each judge called once before a run
"""
