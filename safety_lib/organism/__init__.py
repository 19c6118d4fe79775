"""A model organism of delayed failure: a small network that follows a policy while it can see it.

It is SmolLM2-135M-Instruct with an adapter that this part trains, tests and describes.

:mod:`~safety_lib.organism.lessons`
    makes the conversations that it learns from;
:mod:`~safety_lib.organism.llama`
    is the network in JAX, and reads and writes its files;
:mod:`~safety_lib.organism.trainer`
    trains the adapter;
:mod:`~safety_lib.organism.held_out`
    tests it on worlds that it has never seen.

``python -m safety_lib.organism`` runs them. What it needs is installed by
``pip install 'agentic-safety-notebooks[organism]'``.
"""
