"""What a run would take on a machine that isn't here: `machines` that it may run on, the run as
`shapes` without arrays, its phases as `programs` compiled for the machine, and what they `cost`.
"""
