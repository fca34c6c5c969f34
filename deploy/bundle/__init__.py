"""What ships: models, what they must answer, and everything that lets a device check both.

`write` makes a bundle, `check` trusts one, `archive` packs it for the way.
"""
