"""Triton's interpreter without the half of its work that changes no result.

It looks through the whole language for what to replace, in every call of every kernel and of
every function within one: what is found is the same each time. And it computes a check against
integer overflow for each sum and product, which it then throws away, since `debug` is off.
"""

import functools
import inspect
from dataclasses import replace


def quicken(patch):
    """Patch Triton's interpreter, if it is one that has these parts."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @functools.cache
    def builtins_of(place):
        return [name for name, member in inspect.getmembers(place) if is_builtin(member)]

    def patch_builtin(place, builder, scope):
        for name in builtins_of(place):
            member = getattr(place, name)
            if is_builtin(member):  # not replaced yet
                interpreter._patch_attr(place, name, member, builder, scope)

    numpy_type_of = interpreter._get_np_dtype
    cached = functools.cache(numpy_type_of)

    def numpy_type(kind):  # types of pointers have no hash
        return numpy_type_of(kind) if kind.scalar.is_ptr() else cached(kind.scalar)

    builder = interpreter.interpreter_builder
    patch.setattr(interpreter, "_patch_builtin", patch_builtin, raising=False)
    patch.setattr(interpreter, "_get_np_dtype", numpy_type)
    patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
