"""The layers of the package, the lowest first."""

# A module imports only from its own folder and from layers above its own in this list.
LAYERS = (
    ("shown",),
    ("errors", "settings", "digests"),
    ("documents", "console"),
    ("core", "files", "sealed"),
    ("objectives", "diagnostics", "data", "models", "report"),
    ("hf", "update", "recipe"),
    ("collect",),
    ("run", "comparison"),
    ("quickstart", "language_model", "making"),
    ("sweeps",),
    ("api",),
    ("commands",),
    ("cli",),
)
