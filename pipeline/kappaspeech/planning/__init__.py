"""The needs of a training before it starts: memory by part, time a step, and what to change if it doesn't fit.

A room of its own: it reads shapes alone, the command asks it without a run, and a run asks it about itself.
"""
