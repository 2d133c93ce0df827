"""Plans a run before it starts: memory, time, the split of devices, from a model's shape and a device's data sheet.

Nothing here imports torch: a plan is arithmetic, and it is quick.
"""
