"""Pure tensor maths of group-relative policy optimisation: one module an axis, one literal dict a module."""
