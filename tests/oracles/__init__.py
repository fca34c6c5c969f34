"""Plain, slow implementations of what papers and released code say, one file per method.

They share nothing with the code under test: each is what a reader would write down first.
"""
