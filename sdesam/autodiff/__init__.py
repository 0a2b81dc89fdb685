"""What is read off a jaxpr, the program that jax makes of a function when it traces it.

One interpreter, :class:`sdesam.autodiff.interpreter.Interpreter`, walks the equations of a jaxpr.
Its users differ in the values that they put in place of arrays: what is known of smoothness, a
weight matrix on its way to its layer, the components of a small state.
"""
