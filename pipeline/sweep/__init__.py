"""Many runs of one recipe over a grid: what each is, and engines that carry them out."""
