"""Option 4: what is needed to make a volume's environments again, and making them.

`report` says what is told, `capture` finds it out on the volume, in a process of its own (`surveyor`) with no
more rights than the volume's owner; `keeping` puts it into a snapshot and reads it there; `steps` decides
what a bare machine must do for it, and `recreate` does that. What lies on a volume may have been put there by
anybody: nothing of it is believed, followed or run.
"""
