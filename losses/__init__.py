"""The objectives, one in each file. `pobench.registry.losses` imports the whole folder, so a new file needs no list."""
