"""Judges put to the test: run on files, attacked, compared with labels, and tried before a run.

runner       judges rows of a file, resumable
audit        how often a judge passes what deserves nothing
attacks      the replies that `audit` tries
calibrate    a judge against labels
trial        each judge called once before a run
"""
