"""One thin file per figure or table; each writes its picture and its data to `figures/`."""
