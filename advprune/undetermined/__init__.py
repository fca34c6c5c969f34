"""Methods that their public description does not determine: one file each, with a card and why."""
