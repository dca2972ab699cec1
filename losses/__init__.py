"""The objectives, one file each. `pobench.registry.losses` finds them; nothing imports them by name."""
