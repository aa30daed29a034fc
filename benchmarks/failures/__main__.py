"""`python -m benchmarks.failures [FILE]` runs the matrix and writes docs/reliability.md.

Note: each command that a cell starts imports this file, by multiprocessing's rule for the main
module; so nothing is imported here before it is needed.
"""

if __name__ == "__main__":
    from benchmarks.failures.whole import main

    main()
