"""Whether the tests would notice: small faults are put into a module, and some test must fail.

    PYTHONPATH=tests python -m mutation masks allocate --out build/mutants.json
    PYTHONPATH=tests python -m mutation attacks --sample 40 --seed 1

Every mutant runs in a process of its own, forked from one that has torch and pytest in memory but
no module of this repository, so that the import of the mutated module serves the mutant and
nothing else. What a test starts as a further process runs the original; that can only make a mutant
survive.
"""
