"""What a run leaves behind and how people look at it: metrics, timeline, live view, rollouts, summary, plots."""
