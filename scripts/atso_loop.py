#!/usr/bin/env python
"""ATSO: generations of pseudo labels and models, by a loop that can be killed at any moment. ``--help`` says more."""

from nnunet_partial.orchestration.atso.command import main

if __name__ == "__main__":
    main()
