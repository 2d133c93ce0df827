"""Pages in a browser: one file that opens by double click, or the page of a run served while the run goes on.

overview    a run in plain values: state, curves, warnings, recipe, timeline
rollouts    the logged groups: all of them through an index, or the sample that a file holds
shell       the HTML document of every page: script, style and values in one file that asks nobody for anything
document    the page of a run as such a file
server      the same document over HTTP, for one run or a folder of runs
folder      the runs of a folder
"""
