"""What `jano-dist bench` and `jano-dist tune` share: cases, runs that are compared, what is written of them.

No torch here or in `cases`, so that a command line with a typo is answered at once.
"""
