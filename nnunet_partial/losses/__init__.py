"""The equations of the papers as pure functions of tensors. Imports torch and the standard library alone."""
