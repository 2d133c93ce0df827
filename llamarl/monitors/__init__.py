"""Monitors: how a policy's responses change against the control's, in ways that reward hacking changes them.

settings     which monitors, and when they warn and stop
signals      what a monitor looks for in a response
monitors     counts over responses, their change against the control's, and what follows
responses    responses read from files

Training and the release gate use them alike; nothing here knows of either. No torch.
"""
