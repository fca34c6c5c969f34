"""Cards of published methods that their public descriptions do not determine."""
