"""The records that a run leaves behind and the ways to look at them: metrics, timeline, live view, rollouts, plots."""
