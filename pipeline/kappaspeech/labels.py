"""What data and model agree on about labels."""

# no label stands here: what torch's own losses leave out
IGNORED_LABEL = -100
